"""A layer's attention, its inputs at random, and what the definitions say of them."""

import numpy as np
import torch
from torch import Tensor

from gptstar.model import GPT, GPTConfig
from gptstar.model.attention import Attention
from gptstar.model.kernels.choice import AttentionForm
from gptstar.model.positions import Fire
from gptstar.model.view import View
from support import definitions

D_MODEL, D_HEAD, THRESHOLD, P = 30, 8, 37, 0.75
WITHIN = 1e-5


def layer_of(kind: str, n_heads: int, **modifiers: object) -> Attention:
    """The first layer's attention of a model whose parameters of positions are far from their initial values."""
    torch.manual_seed(n_heads)
    given = {"fire": Fire(THRESHOLD)}.get(kind, kind)
    model = GPT(GPTConfig(1, D_MODEL, n_heads, 31, d_head=D_HEAD, positions=given, **modifiers)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_parameters" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
            elif "softmax_scale" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.blocks[0].attention


def inputs_of(n_heads: int, n_positions: int) -> list[Tensor]:
    """The layer's input `(1, position, d_model)`, and queries, keys and values `(1, position, head * d_head)`."""
    torch.manual_seed(n_positions)
    widths = (D_MODEL, *3 * (n_heads * D_HEAD,))
    return [torch.randn(1, n_positions, width) for width in widths]


def parameters_of(attention: Attention) -> dict[str, np.ndarray]:
    (module,) = attention._of_positions
    named = {} if module is None else dict(module.named_parameters())
    return {name: each.detach().double().numpy() for name, each in named.items()}


def expected_of(kind: str, attention: Attention, inputs: list[Tensor], rows: np.ndarray) -> Tensor:
    """What the papers define for some queries: `(row, head * d_head)`, float64."""
    n_positions, n_heads = inputs[0].shape[1], attention.n_heads
    x, *rest = (each[0].double().numpy() for each in inputs)
    query, key, value = (each.reshape(n_positions, n_heads, D_HEAD).transpose(1, 0, 2) for each in rest)
    query, key = (definitions.turned(kind, each, P) for each in (query, key))
    given = parameters_of(attention) | {"x": x, "threshold": np.float64(THRESHOLD)}
    bias = definitions.bias(kind, n_heads, rows, n_positions, given)
    seen = definitions.visible(rows, n_positions, attention.mask.window, attention.mask.sinks)
    if attention.softmax_scale is not None:
        query = definitions.ssmax(query, attention.softmax_scale.s.detach().double().numpy(), rows, seen)
    mixed = definitions.attention(query, key, value, bias, rows, seen)
    return torch.from_numpy(mixed.transpose(1, 0, 2).reshape(len(rows), -1))


def deviation(kind: str, form: AttentionForm, n_heads: int, n_positions: int, **modifiers: object) -> float:
    """The largest difference from the definitions, over the first, some, and the last queries."""
    attention, inputs = layer_of(kind, n_heads, **modifiers), inputs_of(n_heads, n_positions)
    attention.form = form
    rows = np.unique(np.concatenate((np.arange(min(n_positions, 24)), np.linspace(0, n_positions - 1, 24).astype(int))))
    with torch.no_grad():
        found = attention.mixed(*inputs, None)[0, rows]
    assert found.dtype is torch.float32
    return (found.double() - expected_of(kind, attention, inputs, rows)).abs().max().item()


def assert_documents_read_alone(kind: str, attention: Attention, inputs: list[Tensor], sizes: list[int]) -> None:
    """Documents that share a window are each mixed as the definition says of it by itself."""
    documents = torch.repeat_interleave(torch.tensor(sizes))[None]
    with torch.no_grad():
        found = attention.mixed(*inputs, documents)[0]
    ends = np.cumsum(sizes).tolist()
    for start, stop in zip([0, *ends], ends, strict=False):
        own = [each[:, start:stop] for each in inputs]
        expected = expected_of(kind, attention, own, np.arange(stop - start))
        torch.testing.assert_close(found[start:stop].double(), expected, atol=2 * WITHIN, rtol=0)


def assert_branches_are_whole_sequences(model: GPT) -> tuple[Tensor, Tensor]:
    """Two sequences that share a beginning have the logits of each alone, in a view of 16 tokens.

    Returns:
        The tokens `(16,)`, the first nine of which are the first sequence, and their logits `(16, n_vocab)`.
    """
    nodes = torch.randint(31, (16,))
    at = torch.tensor([*range(5), *range(5, 9), *range(5, 12)])
    branch = torch.tensor([0] * 5 + [1] * 4 + [2] * 7)
    mask = (at[:, None] >= at) & ((branch == 0) | (branch[:, None] == branch))
    with torch.inference_mode():
        together = model.logits(model.hidden(nodes[None], View(at[None], at[None], mask[None])))[0]
        second = model(torch.cat((nodes[:5], nodes[9:]))[None])[0]
        torch.testing.assert_close(together[:9], model(nodes[None, :9])[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat((together[:5], together[9:])), second, atol=1e-5, rtol=1e-5)
        few = torch.tensor([[15, 3]])
        found = model.hidden(nodes[None], View(at[None], at[None], mask[None]), few)
        torch.testing.assert_close(model.logits(found)[0], together[few[0]], atol=1e-5, rtol=1e-5)
    return nodes, together
