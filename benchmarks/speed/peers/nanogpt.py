"""A plain GPT-2 as nanoGPT shapes it, re-implemented from GPT-2's definition for the comparison's sake.

One projection of queries, keys and values, `scaled_dot_product_attention`, no biases, the vocabulary padded to a
multiple of 64, all logits at once, AdamW fused.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; nanoGPT's defaults, Karpathy, 2022.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from gptstar.model import GPTConfig
from speed.job import Job, training_flops
from speed.steps import Precision, adamw, n_params, training_job


class Block(nn.Module):
    """GPT-2's block: attention, then the MLP, each of its own norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        D, self.n_heads = config.d_model, config.n_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(D, config.mlp_width, bias=False), nn.GELU(), nn.Linear(config.mlp_width, D, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, position, d_model)` → the same shape."""
        B, T, D = x.shape
        query, key, value = (
            part.view(B, T, self.n_heads, -1).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).split(D, -1)
        )
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.mlp(self.mlp_norm(x))


class NanoGPT(nn.Module):
    """GPT-2 with tied embeddings and learned positions, as many as `config.n_ctx`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_ctx is not None
        self.tokens = nn.Embedding(-config.n_vocab // 64 * -64, config.d_model)
        self.positions = nn.Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layers)))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        self.head = nn.Linear(config.d_model, self.tokens.num_embeddings, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(batch, position, padded vocabulary)` and the mean loss."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        logits = self.head(self.norm(self.blocks(x)))
        return logits, cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)


def training(
    config: GPTConfig, *, precision: Precision, batch: int, context: int, device: str, compiled: bool = False
) -> Job:
    """A training step; bfloat16 by autocast."""
    with torch.device(device):
        model = NanoGPT(config)
    forward = torch.compile(model) if compiled else model
    return training_job(
        model,
        lambda tokens, targets: forward(tokens, targets)[1],
        adamw(model, fused=True),
        autocast=precision == "bf16",
        flops=training_flops(n_params(model) - model.positions.weight.numel(), config, context),
        n_vocab=config.n_vocab,
        batch=batch,
        context=context,
        device=device,
    )
