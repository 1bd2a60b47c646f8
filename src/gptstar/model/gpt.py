"""GPT* and GPT-2 as one class.

The published GPT* is `residual="parallel", positions="alibi"`; GPT-2 is `residual="sequential", positions="learned",
gelu="tanh"`. Unless its positions have a capacity, the model has no context length: the length is the tensor's shape.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from gptstar.errors import ConfigError
from gptstar.model.attention import Attention
from gptstar.model.blocks import BLOCKS, MLP, Block
from gptstar.model.config import GPTConfig
from gptstar.model.kernels.choice import AttentionForm, writes_own_gradient
from gptstar.model.kernels.summed_loss import TiedGradient, summed_loss
from gptstar.model.loss import LOGITS_AT_ONCE, token_losses
from gptstar.model.mask import Mask
from gptstar.model.positions import POSITIONS
from gptstar.model.positions.base import places_in_documents
from gptstar.model.view import Scope, View

INIT_STD = 0.02


class GPT(nn.Module):
    """A decoder-only transformer with tied embeddings.

    Attributes:
        positions: the configuration's positions, or scaled ones within `scaled_positions`.
        mask: the configuration's mask, or the one that `use` was given.
        tokenizer: JSON of the `tokenizers` library, if it came with the weights; the model stores it without using it.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.positions, self.mask = config, config.positions, config.mask
        self.tokenizer: str | None = None
        self.logits_at_once = LOGITS_AT_ONCE
        device = torch.get_default_device()
        with torch.device("meta"):  # each of PyTorch's modules would draw weights that are not used
            self.token_embedding = nn.Embedding(config.n_vocab, config.d_model)
            shared = None if self.positions.per_layer else self.positions.parameters(config)
            self.add_module(self.positions.name_in_model, shared)
            self.dropout = nn.Dropout(config.dropout)
            block = BLOCKS.find(config.residual)
            self.blocks = nn.ModuleList(
                block(Attention(config, shared), MLP(config), d_model=config.d_model, dropout=config.dropout)
                for _ in range(config.n_layers)
            )
            self.norm = nn.LayerNorm(config.d_model)
        if device.type != "meta":
            self.to_empty(device=device)
            with torch.no_grad():
                for name, value in self.initial_weights():
                    self.get_parameter(name).copy_(value)

    def use(
        self,
        *,
        attention: AttentionForm = "auto",
        activation_checkpointing: bool = False,
        logits_at_once: int = LOGITS_AT_ONCE,
        attention_window: int | None = None,
        attention_sinks: int = 0,
    ) -> None:
        """Choose how to compute. Without a window, results change by rounding only.

        Args:
            attention: the implementation of causal attention.
            activation_checkpointing: in training keep only the input of each block, and compute the block again in the
                backward pass: a third more work for a fraction of the memory.
            logits_at_once: the most logits that the loss holds; it computes those of a larger batch in pieces.
            attention_window, attention_sinks: restrict attention as `Mask` describes, in place of the configuration's
                values, which stay unchanged. None means the configuration's. A window as long as the text does nothing.

        Raises:
            ConfigError: the window is below 1, or there are fewer than 0 sinks, or sinks without a window.
        """
        try:
            given = Mask(attention_window, attention_sinks)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.mask = self.config.mask if attention_window is None else given
        self.logits_at_once = logits_at_once
        for module in self.modules():
            if isinstance(module, Attention):
                module.form, module.mask = attention, self.mask
            elif isinstance(module, Block):
                module.activation_checkpointing = activation_checkpointing

    def initial_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Draw weights as GPT-2 does: N(0, 0.02), residual projections scaled down by depth, biases 0, norms 1.

        Positions and blocks may define the initial values of their own parameters. Each parameter is drawn separately
        on the CPU, so that a seed gives the same weights on every device, and for sharded models.
        """
        block = BLOCKS.find(self.config.residual)
        depth = self.config.n_layers * (2 if self.config.residual_init == "gpt2" else 1)
        for name, parameter in self.named_parameters():
            shape, drawn = parameter.shape, None
            name_in_positions = name.partition(f"{self.positions.name_in_model}.")[2]
            if name_in_positions:
                drawn = self.positions.initial(name_in_positions, shape)
            elif ".attention.softmax_scale." in name:
                drawn = self.config.softmax_scale.initial(shape)
            elif name.startswith("blocks."):
                drawn = block.initial(name.split(".", 2)[2], shape)
            if drawn is not None:
                yield name, drawn
            elif name.endswith("bias"):
                yield name, torch.zeros(shape, device="cpu")
            elif name.rpartition(".")[0].endswith("norm"):
                yield name, torch.ones(shape, device="cpu")
            else:
                residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                std = INIT_STD / math.sqrt(depth) if residual else INIT_STD
                yield name, torch.empty(shape, device="cpu").normal_(std=std)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        documents: Tensor | None = None,
        *,
        reduction: Literal["none", "sum"] = "none",
    ) -> Tensor:
        """Return the logits, or the losses if targets are given.

        Args:
            tokens: `(batch, position)`, int64.
            targets: `(batch, position)`, int64: the token that follows each position; negative where there is none.
            documents: `(batch, position)`, int64: the document of each position. A token attends to its own document
                only. Learned positions don't restart at a document.
            reduction: `none` for the loss of each target, or `sum`, which trains faster but allows one backward pass
                only.

        Returns:
            Without targets the logits, `(batch, position, n_vocab)`. With targets the losses in nats, float32: `(batch,
            position)`, 0 where there is no target, or their sum.

        Raises:
            ConfigError: there are more tokens than learned positions.
        """
        if targets is None:
            return self.logits(self.hidden(tokens, documents))
        if reduction == "sum" and writes_own_gradient(tokens.device):
            weight, tied = self.token_embedding.weight, TiedGradient()
            return summed_loss(self.trunk(tied.embed(tokens, weight), documents), weight, targets, tied)
        losses = self.losses(self.hidden(tokens, documents), targets)
        return losses.sum() if reduction == "sum" else losses

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of targets `(batch, position)` from hidden states, as `token_losses` does."""
        return token_losses(hidden, self.token_embedding.weight, targets, self.logits_at_once)

    def hidden(self, tokens: Tensor, scope: Scope | None = None, selected: Tensor | None = None) -> Tensor:
        """Return the hidden states from which `logits` computes logits.

        Args:
            tokens: `(batch, position)`, int64.
            scope: documents, as `forward` takes them, or a view.
            selected: `(batch, selected)`, int64: the positions that the last block computes; None means all. It can't
                be combined with documents.

        Returns:
            `(batch, position, d_model)`, normed; or `(batch, selected, d_model)`.
        """
        return self.trunk(self.token_embedding(tokens), scope, selected)

    def trunk(self, x: Tensor, scope: Scope | None = None, selected: Tensor | None = None) -> Tensor:
        """Run all blocks on embedded tokens `(batch, position, d_model)`, and return what `hidden` returns."""
        view = scope.under(self.mask) if isinstance(scope, View) else None
        scope = view or scope
        self._check_capacity(x.shape[1], view)
        at = None if view is None else view.queries
        if isinstance(scope, Tensor) and self.positions.restarts:
            at = places_in_documents(scope)
        x = self.dropout(self.positions.embed(x, at, self._modules.get(self.positions.name_in_model)))
        first = self.blocks[0].attention
        assert isinstance(first, Attention)
        scope = last = first.shared_scope(x, scope)
        if selected is not None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            last = (view or View(positions, positions).under(self.mask)).select(selected)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, last if number == len(self.blocks) else scope)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states `(…, d_model)` to logits `(…, n_vocab)`."""
        return nn.functional.linear(hidden, self.token_embedding.weight)

    def _check_capacity(self, n_positions: int, view: View | None) -> None:
        capacity = self.positions.capacity
        if capacity is None:
            return
        length = n_positions if view is None else view.n_positions
        if length > capacity:
            name = POSITIONS.name_of(self.config.positions)
            raise ConfigError(
                f"{length} tokens exceed model.n_ctx={capacity}; {name} positions can't extrapolate: shorten the text"
            )
