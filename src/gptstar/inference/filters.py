"""What may be drawn: each filter takes logits `(row, n_vocab)` to logits, `-inf` for what is left out.

The definitions are those of Hugging Face's `LogitsProcessor`s, to the treatment of ties.
"""

import torch
from torch import Tensor


def penalise(logits: Tensor, had: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of the tokens that a text has had, and multiply negative ones.

    Args:
        had: `(row, n_vocab)`, bool.

    Source: Keskar et al., "CTRL", 2019, section 4.1.
    """
    return torch.where(had, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest, and what is as likely as the last of them.

    Source: Fan et al., "Hierarchical Neural Story Generation", 2018.
    """
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_nucleus(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities sum to p at least.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    ascending, order = logits.sort(dim=-1)
    left_out = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - p
    left_out[:, -1] = False
    return logits.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Those whose information is nearest to the entropy, until their probabilities sum to p.

    Source: Meister et al., "Locally Typical Sampling", 2023.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)  # 0 * inf is left out
    distance = (-log_probabilities - entropy).abs()
    ascending, order = distance.sort(dim=-1)
    cumulative = torch.softmax(logits.gather(1, order), dim=-1).cumsum(dim=-1)
    last = (cumulative < p).sum(dim=-1, keepdim=True).clamp_(max=logits.shape[-1] - 1)
    left_out = ascending > ascending.gather(1, last)
    return logits.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)
