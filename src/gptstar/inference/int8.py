"""Weights in eight bits: a quarter of float32's bytes to read for each token."""

import torch
from torch import Tensor, nn

from gptstar.errors import ConfigError
from gptstar.inference.packed import PackedGPT, has_onednn
from gptstar.model import GPT

LEVELS = 127
"""Levels on either side of zero."""

ZERO = 128
"""The zero of activations, which the processor's instructions take as unsigned bytes."""


class Int8Linear(nn.Module):
    """A linear layer of integers: weights are rounded once, for each output by itself, activations for each row.

    Products of integers are added up exactly, so that a row's result does not depend on its batch.

    Source: Dettmers et al., "LLM.int8()", 2022, section 2.1 (vector-wise quantisation, symmetric on both sides).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / LEVELS  # (out,)
        integers = (weight / scale[:, None]).round_().to(torch.int8)
        # oneDNN multiplies what it put in its own order: what PyTorch's compiler makes of quantised layers on x86.
        self._weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self._scale, self._zeros = scale / LEVELS, torch.zeros(len(scale), dtype=torch.int64)
        # Told of the activations' zero, oneDNN takes a fifth longer than with what it amounts to as a bias.
        self._of_zero = -ZERO * self._scale * integers.sum(dim=1)
        self._bias = torch.zeros(len(scale)) if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`, of the same type."""
        rows = x.flatten(0, -2).float()  # (row, in)
        largest = rows.abs().amax(dim=1, keepdim=True)  # (row, 1)
        largest = largest.clamp_(min=torch.finfo(torch.float32).tiny * LEVELS)
        # Casting to bytes cuts off, so that half a step more rounds.
        integers = (rows * (LEVELS / largest)).add_(ZERO + 0.5).to(torch.uint8)
        activations = (integers, 1.0, 0)  # with their scale and zero
        weights = (self._weight, self._scale, self._zeros, self._of_zero)
        output = (1.0, 0, torch.float32)  # scale, zero and type
        product = torch.ops.onednn.qlinear_pointwise(*activations, *weights, *output, "none", [], "")  # (row, out)
        out = torch.addcmul(self._bias, product, largest)
        return out.to(x.dtype).view(*x.shape[:-1], len(self._scale))


def quantised(model: GPT) -> GPT:
    """Return the same model with its linear layers and its output head in eight bits, for a CPU.

    Embeddings, norms, attention and everything between layers stay of the model's type. docs/speed.md has what it
    costs in perplexity.

    Raises:
        ConfigError: not an x86 processor with the instructions for it (VNNI), or a model on another device.
    """
    device = model.token_embedding.weight.device
    if device.type != "cpu":
        raise ConfigError(f"int8 weights are read by a CPU, and the model is on {device}: move it, or use bfloat16")
    if not (has_onednn() and torch.cpu._is_vnni_supported()):
        raise ConfigError("this CPU lacks the instructions for int8 weights (VNNI): use bfloat16 or float32")
    return PackedGPT(model, Int8Linear)
