"""Int8 weights, which need a quarter of float32's memory reads per token."""

import torch
from torch import Tensor, nn

from gptstar.errors import ConfigError
from gptstar.inference.packed import PackedGPT, has_onednn
from gptstar.model import GPT

LEVELS = 127
"""Number of levels on either side of zero."""

ZERO = 128
"""The zero point of activations, which the processor's instructions take as unsigned bytes."""


class Int8Linear(nn.Module):
    """An int8 linear layer. Weights are quantised once, per output; activations at each call, per row.

    Products of integers are summed exactly, so a row's result does not depend on its batch.

    Source: Dettmers et al., "LLM.int8()", 2022, section 2.1 (vector-wise quantisation, symmetric on both sides).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / LEVELS  # (out,)
        integers = (weight / scale[:, None]).round_().to(torch.int8)
        # oneDNN needs its own memory layout. PyTorch's compiler does the same for quantised layers on x86.
        self._weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self._scale, self._zeros = scale / LEVELS, torch.zeros(len(scale), dtype=torch.int64)
        # Folding the zero point into the bias is a fifth faster than passing it to oneDNN.
        self._of_zero = -ZERO * self._scale * integers.sum(dim=1)
        self._bias = torch.zeros(len(scale)) if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(…, in)` to `(…, out)` in the same dtype."""
        rows = x.flatten(0, -2).float()  # (row, in)
        largest = rows.abs().amax(dim=1, keepdim=True)  # (row, 1)
        largest = largest.clamp_(min=torch.finfo(torch.float32).tiny * LEVELS)
        # A cast to bytes truncates, so adding half a step rounds.
        integers = (rows * (LEVELS / largest)).add_(ZERO + 0.5).to(torch.uint8)
        activations = (integers, 1.0, 0)  # the activations with their scale and zero point
        weights = (self._weight, self._scale, self._zeros, self._of_zero)
        output = (1.0, 0, torch.float32)  # output scale, zero point and dtype
        product = torch.ops.onednn.qlinear_pointwise(*activations, *weights, *output, "none", [], "")  # (row, out)
        out = torch.addcmul(self._bias, product, largest)
        return out.to(x.dtype).view(*x.shape[:-1], len(self._scale))


def quantised(model: GPT) -> GPT:
    """Return the model with int8 linear layers and an int8 output head, for a CPU.

    Embeddings, norms, attention and all activations between layers keep the model's dtype. docs/speed.md states the
    cost in perplexity.

    Raises:
        ConfigError: the CPU lacks the instructions for int8 (VNNI), or the model is on another device.
    """
    device = model.token_embedding.weight.device
    if device.type != "cpu":
        raise ConfigError(f"int8 weights need a CPU, but the model is on {device}: move it, or use bfloat16")
    if not (has_onednn() and torch.cpu._is_vnni_supported()):
        raise ConfigError("this CPU lacks the instructions for int8 weights (VNNI): use bfloat16 or float32")
    return PackedGPT(model, Int8Linear)
