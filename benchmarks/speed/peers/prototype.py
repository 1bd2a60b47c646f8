"""GPT* as one graph for the compiler, in plain PyTorch: what a GPU gives to this architecture.

FlexAttention is inside the graph, the vocabulary is padded to a multiple of 128 so that rows of matrices are aligned,
and the cross-entropy of all logits is left to the compiler. It reads windows of one length only.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import cross_entropy, gelu, linear

from gptstar.model import GPTConfig
from gptstar.model.positions import alibi_slopes
from speed.job import Job
from speed.steps import adamw, training_job

ALIGNED = 128


def causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The causal mask: whether a query attends to a key."""
    return query >= key


class Prototype(nn.Module):
    """GPT*: parallel residual, ALiBi, tied embeddings."""

    slopes: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        D, A, layers = config.d_model, config.n_heads * config.head_width, range(config.n_layers)
        self.n_heads = config.n_heads
        self.embedding = nn.Embedding(-config.n_vocab // ALIGNED * -ALIGNED, D)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(config.n_layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(D, 3 * A) for _ in layers)
        self.out = nn.ModuleList(nn.Linear(A, D) for _ in layers)
        self.up = nn.ModuleList(nn.Linear(D, config.mlp_width) for _ in layers)
        self.down = nn.ModuleList(nn.Linear(config.mlp_width, D) for _ in layers)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(config.n_heads)), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor, mask: BlockMask) -> Tensor:
        """The mean loss of `(batch, position)` targets."""
        logits = self.logits(tokens, mask)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def logits(self, tokens: Tensor, mask: BlockMask) -> Tensor:
        """`(batch, position)` → `(batch, position, padded vocabulary)`."""
        B, T = tokens.shape
        slopes = self.slopes

        def alibi(score: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score - slopes[head] * (query - key)

        x = self.embedding(tokens)
        for norm, qkv, out, up, down in zip(self.norms[:-1], self.qkv, self.out, self.up, self.down, strict=True):
            y = norm(x)
            query, key, value = (part.view(B, T, self.n_heads, -1).transpose(1, 2) for part in qkv(y).chunk(3, -1))
            mixed = flex_attention(query, key, value, score_mod=alibi, block_mask=mask)
            x = x + out(mixed.transpose(1, 2).flatten(2)) + down(gelu(up(y)))
        return linear(self.norms[-1](x), self.embedding.weight)


def mask_of(context: int, device: str) -> BlockMask:
    """The blocks of keys that each block of queries sees."""
    return create_block_mask(causal, None, None, context, context, device=device)


def training(config: GPTConfig, *, batch: int, context: int, device: str) -> Job:
    """A compiled training step; bfloat16 by autocast."""
    with torch.device(device):
        model = Prototype(config)
    mask, compiled = mask_of(context, device), torch.compile(model)
    return training_job(
        model,
        lambda tokens, targets: compiled(tokens, targets, mask),
        adamw(model, fused=True),
        autocast=True,
        flops=config.training_flops(context),
        n_vocab=config.n_vocab,
        batch=batch,
        context=context,
        device=device,
    )
