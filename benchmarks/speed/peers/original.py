"""The original GPT*'s way of computing, re-implemented from its definition for the comparison's sake.

Separate projections of queries, keys and values; scores of all pairs, (batch, head, T, T), in memory; in every layer
an ALiBi bias (head, T, T) and a causal mask of its own, in float32; all logits at once; AdamW as PyTorch has it by
default; generation without a cache.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from gptstar.model import GPTConfig
from gptstar.model.positions import alibi_slopes
from speed.job import Job, timed, training_flops
from speed.steps import Precision, adamw, decoding_job, n_params, prompt_of, training_job


class Attention(nn.Module):
    """Naive causal self-attention with ALiBi."""

    bias: Tensor
    mask: Tensor

    def __init__(self, config: GPTConfig, context: int) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.query, self.key, self.value, self.out = (nn.Linear(config.d_model, config.d_model) for _ in range(4))
        positions = torch.arange(context)
        distances = (positions[None] - positions[:, None]).float()  # (query, key)
        slopes = torch.tensor(alibi_slopes(config.n_heads))[:, None, None]
        self.register_buffer("bias", slopes * distances, persistent=False)  # (head, query, key)
        self.register_buffer("mask", torch.tril(torch.ones(context, context)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, position, d_model)` → the same shape."""
        B, T, D = x.shape
        query, key, value = (
            projection(x).view(B, T, self.n_heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + self.bias[:, :T, :T]
        scores = scores.masked_fill(self.mask[:T, :T] == 0, -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).contiguous().view(B, T, D))


class Block(nn.Module):
    """`x + attn(ln(x)) + mlp(ln(x))`."""

    def __init__(self, config: GPTConfig, context: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.attention = Attention(config, context)
        self.up, self.down = nn.Linear(config.d_model, config.mlp_width), nn.Linear(config.mlp_width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, position, d_model)` → the same shape."""
        normed = self.norm(x)
        return x + self.attention(normed) + self.down(gelu(self.up(normed)))


class Original(nn.Module):
    """GPT*, computed as it first was.

    Args:
        context: the most tokens it will read; its biases and masks are of that size.
    """

    def __init__(self, config: GPTConfig, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_vocab, config.d_model)
        self.blocks = nn.Sequential(*(Block(config, context) for _ in range(config.n_layers)))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.n_vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """`(batch, position)` → logits `(batch, position, n_vocab)`."""
        return self.head(self.norm(self.blocks(self.embedding(tokens))))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        logits = self(tokens)
        return cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def training(config: GPTConfig, *, precision: Precision, batch: int, context: int, device: str) -> Job:
    """A training step; bfloat16 by autocast."""
    model = Original(config, context).to(device)
    return training_job(
        model,
        model.loss,
        adamw(model, fused=None),
        autocast=precision == "bf16",
        flops=training_flops(n_params(model), config, context),
        n_vocab=config.n_vocab,
        batch=batch,
        context=context,
        device=device,
    )


def decoding(config: GPTConfig, *, precision: Precision, prompt: int, n_new: int, device: str) -> Job:
    """A token at a time, each by reading all that is before it."""
    model = Original(config, prompt + n_new + 1).to(device).eval()

    @torch.inference_mode()
    def continuation() -> Iterator[Tensor]:
        tokens = prompt_of(config.n_vocab, 1, prompt, device)
        while True:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                chosen = model(tokens)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat((tokens, chosen), dim=1)
            yield tokens

    return decoding_job(continuation, n_new=n_new, batch=1, weight_bytes=0.0, device=device)


def reading(config: GPTConfig, *, precision: Precision, length: int, device: str) -> Job:
    """The loss of one window."""
    model = Original(config, length).to(device).eval()
    windows = torch.randint(config.n_vocab, (1, length + 1), device=device)

    @torch.inference_mode()
    def read(length: int = length) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            assert torch.isfinite(model.loss(windows[:, :length], windows[:, 1 : length + 1]))

    read(min(64, length))  # what is set up once
    return Job(timed(read, device, warmup=0), length, n_params=n_params(model))
