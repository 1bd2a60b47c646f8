"""A model for inference only, whose matrices are laid out and joined as its device reads them fastest."""

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
"""Turns a weight `(out, in)` and a bias `(out,)` into a module that applies them: `(…, in)` → `(…, out)`."""


class PackedLinear(nn.Module):
    """A linear layer in the layout of oneDNN, PyTorch's library for CPUs.

    For a few rows at a time it reads its weights about twice as fast as `nn.Linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`, of the type of the weights; not for autocast."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class JoinedLinear(nn.Module):
    """A linear layer on a GPU, which adds its bias by itself in a compiled step.

    So a compiler writes the product of one row as one kernel with all that follows it; with a bias in the product it
    would call a library.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`."""
        if self._bias is not None and torch.compiler.is_compiling():
            return linear(x, self._weight) + self._bias
        return linear(x, self._weight, self._bias)


class PackedBlock(nn.Module):
    """A parallel block whose attention and MLP read their common input by one product, not two."""

    def __init__(self, block: ParallelBlock, pack: Pack) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = block.norm, block.attention, block.mlp
        parts = (block.attention.qkv, block.mlp.up)
        self._widths = [*3 * [block.attention.qkv.out_features // 3], block.mlp.up.out_features]
        self.both = pack(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        del block.attention.qkv, block.mlp.up  # else they would be held twice

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """As `ParallelBlock.forward`."""
        normed = self.norm(x)
        query, key, value, up = self.both(normed).split(self._widths, dim=-1)
        mixed = self.attention.mixed(normed, select_queries(query, scope), key, value, scope)
        attended = self.attention.out(mixed)
        up = select_queries(up, scope).contiguous()  # a GELU is twice as fast where its numbers lie side by side
        return select_queries(x, scope) + attended + self.mlp.down(self.mlp.gelu(up))


class PackedGPT(GPT):
    """A model in eval mode that shares embeddings and norms with the one that it was made from, and packs the rest.

    Its weights can't be trained, saved or cast. It keeps the form of attention, its mask and the scaling of positions
    that the model has when it is packed.

    Args:
        pack: replaces each linear layer; the output head, which is tied to the embedding, gets a layer of its own.
    """

    def __init__(self, model: GPT, pack: Pack) -> None:
        with torch.device("meta"):  # all of it comes from the model
            super().__init__(model.config)
        self.tokenizer = model.tokenizer
        self.requires_grad_(False).eval()
        self.load_state_dict(model.state_dict(), assign=True)
        self.positions, self.mask = (
            model.positions,
            model.mask,
        )  # neither configuration nor state has what is chosen later
        own, its = ([part for part in each.modules() if isinstance(part, Attention)] for each in (self, model))
        for layer, original in zip(own, its, strict=True):
            layer.form, layer.positions, layer.mask = original.form, original.positions, original.mask
        # Not the last one: to read a prompt, its MLP is needed for one token only.
        for number, block in enumerate(self.blocks[:-1]):
            if type(block) is ParallelBlock:  # what derives from it may compute otherwise
                self.blocks[number] = PackedBlock(block, pack)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, pack(child.weight, child.bias))
        self.head = pack(self.token_embedding.weight, None)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, documents: Tensor | None = None, **_: object
    ) -> Tensor:
        """Return logits, as `GPT.forward`; raise a ConfigError if there are targets."""
        if targets is not None:
            raise ConfigError("a packed model gives logits, not losses: use the model that it was made from")
        return super().forward(tokens, documents=documents)

    def logits(self, hidden: Tensor) -> Tensor:
        """`(…, d_model)` → `(…, n_vocab)`."""
        return self.head(hidden)

    def _apply(self, *_: object, **__: object) -> "PackedGPT":
        raise ConfigError("a packed model stays what and where it is: move or cast the model, then pack it")


def packed(model: GPT) -> GPT:
    """Return the same model in a form that decodes faster, or the model itself where no form is faster.

    A CPU takes half the time a token in bfloat16. A GPU reads a parallel block's joined matrices by one kernel. The
    copies take up to the memory of the weights once more.
    """
    weight = model.token_embedding.weight
    if weight.is_cuda:
        return PackedGPT(model, JoinedLinear)
    if weight.device.type != "cpu" or not has_onednn():
        return model
    has_bfloat16 = weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PackedGPT(model, PackedLinear) if weight.dtype is torch.float32 or has_bfloat16 else model


def has_onednn() -> bool:
    """Whether PyTorch has oneDNN's kernels here."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available
