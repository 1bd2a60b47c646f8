"""An inference-only model whose matrices are laid out and joined for the fastest reading on its device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gptstar.errors import ConfigError
from gptstar.model import GPT
from gptstar.model.attention import Attention
from gptstar.model.blocks import ParallelBlock
from gptstar.model.view import Scope, select_queries

Pack = Callable[[Tensor, Tensor | None], nn.Module]
"""Makes a module that maps `(…, in)` to `(…, out)` from a weight `(out, in)` and a bias `(out,)`."""


class PackedLinear(nn.Module):
    """A linear layer in the layout of oneDNN, PyTorch's library for CPUs.

    For few rows it reads its weights about twice as fast as `nn.Linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `(…, in)` to `(…, out)` in the dtype of the weights; autocast is not supported."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class JoinedLinear(nn.Module):
    """A linear layer for a GPU that adds its bias in a separate operation, for a compiled step.

    So the compiler fuses the product of one row with the operations after it. With a bias in the product, it would
    call a library instead.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(…, in)` to `(…, out)`."""
        if self._bias is not None and torch.compiler.is_compiling():
            return linear(x, self._weight) + self._bias
        return linear(x, self._weight, self._bias)


class PackedBlock(nn.Module):
    """A parallel block that projects the common input of attention and MLP by one product instead of two."""

    def __init__(self, block: ParallelBlock, pack: Pack) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = block.norm, block.attention, block.mlp
        parts = (block.attention.qkv, block.mlp.up)
        self._widths = [*3 * [block.attention.qkv.out_features // 3], block.mlp.up.out_features]
        self.both = pack(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        del block.attention.qkv, block.mlp.up  # otherwise they would be stored twice

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """Compute the same as `ParallelBlock.forward`."""
        normed = self.norm(x)
        query, key, value, up = self.both(normed).split(self._widths, dim=-1)
        mixed = self.attention.mixed(normed, select_queries(query, scope), key, value, scope)
        attended = self.attention.out(mixed)
        up = select_queries(up, scope).contiguous()  # a GELU is twice as fast on contiguous memory
        return select_queries(x, scope) + attended + self.mlp.down(self.mlp.gelu(up))


class PackedGPT(GPT):
    """A packed model in eval mode. It shares embeddings and norms with the original and packs everything else.

    Its weights can't be trained, saved or cast. It keeps the attention kernel, the attention mask and the scaling of
    positions that the model has when it is packed.

    Args:
        pack: replaces each linear layer; the output head, which is tied to the embedding, becomes a separate layer.
    """

    def __init__(self, model: GPT, pack: Pack) -> None:
        with torch.device("meta"):  # all parts come from the model
            super().__init__(model.config)
        self.tokenizer = model.tokenizer
        self.requires_grad_(False).eval()
        self.load_state_dict(model.state_dict(), assign=True)
        self.positions, self.mask = (
            model.positions,
            model.mask,
        )  # choices made later are in neither configuration nor state
        own, its = ([part for part in each.modules() if isinstance(part, Attention)] for each in (self, model))
        for layer, original in zip(own, its, strict=True):
            layer.form, layer.positions, layer.mask = original.form, original.positions, original.mask
        # Except the last one: its MLP is needed for one token of a prompt only.
        for number, block in enumerate(self.blocks[:-1]):
            if type(block) is ParallelBlock:  # a subclass may compute something else
                self.blocks[number] = PackedBlock(block, pack)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, pack(child.weight, child.bias))
        self.head = pack(self.token_embedding.weight, None)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, documents: Tensor | None = None, **_: object
    ) -> Tensor:
        """Return logits like `GPT.forward`; raise ConfigError if there are targets."""
        if targets is not None:
            raise ConfigError("a packed model returns logits, not losses: use the original model")
        return super().forward(tokens, documents=documents)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map `(…, d_model)` to logits `(…, n_vocab)`."""
        return self.head(hidden)

    def _apply(self, *_: object, **__: object) -> "PackedGPT":
        raise ConfigError("a packed model can't be moved or cast: move or cast the original model, then pack it")


def packed(model: GPT) -> GPT:
    """Return a packed model that decodes faster, or the model itself if packing doesn't help.

    On a CPU, packing halves the time per token in bfloat16. On a GPU, one kernel reads a parallel block's joined
    matrices. The copies take up to as much memory as the weights.
    """
    weight = model.token_embedding.weight
    if weight.is_cuda:
        return PackedGPT(model, JoinedLinear)
    if weight.device.type != "cpu" or not has_onednn():
        return model
    has_bfloat16 = weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PackedGPT(model, PackedLinear) if weight.dtype is torch.float32 or has_bfloat16 else model


def has_onednn() -> bool:
    """Return whether this build of PyTorch has oneDNN's kernels."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available
