"""GPT* and its GPT-2-shaped relatives: one class, read from top to bottom.

The published GPT* is `residual="parallel", positions="alibi"`; GPT-2 is `residual="sequential", positions="learned",
gelu="tanh"`. With ALiBi, rotary or no positions the model knows no context length: it is the tensor's shape.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from gptstar.errors import ConfigError
from gptstar.model.attention import Attention
from gptstar.model.blocks import MLP, ParallelBlock, SequentialBlock
from gptstar.model.kernels.choice import AttentionForm, writes_own_gradient
from gptstar.model.kernels.summed_loss import summed_loss_of
from gptstar.model.loss import LOGITS_AT_ONCE, token_losses
from gptstar.model.positions import alibi_slopes
from gptstar.model.view import Scope, View, causal_view

INIT_STD = 0.02


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and variants of a model: all that it takes to build one.

    Attributes:
        n_layers, d_model, n_heads, n_vocab: sizes.
        d_head: width of a head; `d_model / n_heads` unless given.
        d_ff: width of the MLP; `4 * d_model` unless given.
        residual: `parallel` (one norm a block) or `sequential` (two).
        positions: `alibi`, `learned`, `rotary` or `none`.
        n_ctx: the capacity of learned positions, and only theirs.
        gelu: `exact` (erf) or `tanh`, GPT-2's approximation.
        dropout: on embeddings, attention weights and both branches of a block.
        residual_init: the residual projections' std is 0.02 / sqrt(2 n_layers) as in GPT-2, or 0.02 / sqrt(n_layers)
            as in the original GPT* (`legacy`).
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_vocab: int
    d_head: int | None = None
    d_ff: int | None = None
    residual: Literal["parallel", "sequential"] = "parallel"
    positions: Literal["alibi", "learned", "rotary", "none"] = "alibi"
    n_ctx: int | None = None
    gelu: Literal["exact", "tanh"] = "exact"
    dropout: float = 0.0
    residual_init: Literal["gpt2", "legacy"] = "gpt2"

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_vocab", "d_head", "d_ff", "n_ctx"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model.{name}={value} is below 1")
        if self.d_head is None and self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model={self.d_model} does not divide by model.n_heads={self.n_heads}: "
                "change one, or give the head width as model.d_head"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise ConfigError(f"model.d_head={self.head_width} is odd; rotary positions turn pairs: make it even")
        if self.positions == "learned" and self.n_ctx is None:
            raise ConfigError("model.positions=learned needs a capacity: give model.n_ctx (GPT-2's is 1024)")
        if self.positions != "learned" and self.n_ctx is not None:
            raise ConfigError(
                f"model.n_ctx={self.n_ctx} is the capacity of learned positions; with model.positions={self.positions} "
                "the model has no context length: drop it (the training length is data.context_length)"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout={self.dropout} is not in [0, 1)")

    @property
    def head_width(self) -> int:
        """Width of a head, derived where not given."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's hidden layer, derived where not given."""
        return self.d_ff or 4 * self.d_model

    def as_dict(self) -> dict[str, Any]:
        """Every field, with the widths that are derived where not given."""
        return asdict(replace(self, d_head=self.head_width, d_ff=self.mlp_width))

    @property
    def n_params(self) -> int:
        """Parameters by arithmetic, the tied embedding counted once."""
        D, F, A = self.d_model, self.mlp_width, self.n_heads * self.head_width
        attention = (D + 1) * 3 * A + (A + 1) * D
        mlp = (D + 1) * F + (F + 1) * D
        norms = 2 * D * (1 if self.residual == "parallel" else 2)
        positions = (self.n_ctx or 0) * D
        return self.n_vocab * D + positions + self.n_layers * (attention + mlp + norms) + 2 * D

    def training_flops(self, context_length: int) -> int:
        """Floating-point operations a training token costs: `6 N + 12 L H K T`, N without learned positions.

        Source: Chowdhery et al., "PaLM", 2022, appendix B.
        """
        matmul_params = self.n_params - (self.n_ctx or 0) * self.d_model
        return 6 * matmul_params + 12 * self.n_layers * self.n_heads * self.head_width * context_length


class GPT(nn.Module):
    """A decoder-only transformer with tied embeddings.

    Attributes:
        tokenizer: `tokenizers` JSON of what its tokens mean, where it came with the weights; carried along, never used.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: str | None = None
        device = torch.get_default_device()
        with torch.device("meta"):  # each of PyTorch's modules would draw weights that are not used
            self.token_embedding = nn.Embedding(config.n_vocab, config.d_model)
            self.position_embedding = nn.Embedding(config.n_ctx, config.d_model) if config.n_ctx else None
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(self._block() for _ in range(config.n_layers))
            self.norm = nn.LayerNorm(config.d_model)
        self.logits_at_once = LOGITS_AT_ONCE
        if device.type != "meta":
            self.to_empty(device=device)
            self.initialise()

    def _block(self) -> nn.Module:
        config = self.config
        attention = Attention(
            config.d_model,
            config.n_heads,
            config.head_width,
            slopes=alibi_slopes(config.n_heads) if config.positions == "alibi" else None,
            rotary=config.positions == "rotary",
            dropout=config.dropout,
        )
        mlp = MLP(config.d_model, config.mlp_width, gelu=config.gelu)
        block = ParallelBlock if config.residual == "parallel" else SequentialBlock
        return block(attention, mlp, d_model=config.d_model, dropout=config.dropout)

    def use(
        self,
        *,
        attention: AttentionForm = "auto",
        activation_checkpointing: bool = False,
        logits_at_once: int = LOGITS_AT_ONCE,
    ) -> None:
        """Choose how to compute; what is computed stays the same, but for rounding.

        Args:
            attention: the form of causal attention.
            activation_checkpointing: in training keep only what goes into each block, and compute the block again in
                the backward pass: a third more work for a fraction of the memory.
            logits_at_once: logits that the loss holds; a batch with more is computed in pieces.
        """
        self.logits_at_once = logits_at_once
        for module in self.modules():
            if isinstance(module, Attention):
                module.form = attention
            elif isinstance(module, ParallelBlock | SequentialBlock):
                module.activation_checkpointing = activation_checkpointing

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw new weights."""
        for name, value in self.initial_weights():
            self.get_parameter(name).copy_(value)

    def initial_weights(self) -> Iterator[tuple[str, Tensor]]:
        """GPT-2's initialisation: N(0, 0.02), residual projections scaled down by depth, biases zero, norms one.

        One parameter at a time, drawn on the CPU: with the same seed the same on every device, and in parts.
        """
        depth = self.config.n_layers * (2 if self.config.residual_init == "gpt2" else 1)
        for name, parameter in self.named_parameters():
            shape, norm = parameter.shape, name.rpartition(".")[0].endswith("norm")
            if name.endswith("bias"):
                yield name, torch.zeros(shape, device="cpu")
            elif norm:
                yield name, torch.ones(shape, device="cpu")
            else:
                residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                std = INIT_STD / math.sqrt(depth) if residual else INIT_STD
                yield name, torch.empty(shape, device="cpu").normal_(std=std)

    @overload
    def forward(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        *,
        reduction: Literal["none", "sum"] = "none",
    ) -> Tensor: ...
    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        documents: Tensor | None = None,
        *,
        reduction: Literal["none", "sum"] = "none",
    ) -> Tensor:
        """Logits, or with targets the loss of each, or their sum.

        With documents no position sees another document's. Positions are not counted anew for each: ALiBi and rotary
        know distances alone, so a document's logits are those it has by itself, but learned positions go on counting
        from the beginning of the sequence.

        Args:
            tokens: `(batch, position)`, int64.
            targets: `(batch, position)`, int64: the token that follows each position; negative where there is none.
            documents: `(batch, position)`, int64: the number of the document that each position belongs to; None where
                attention goes across documents.
            reduction: with targets `none`, or `sum`, which is the fast way to train; a sum has one backward pass only.

        Returns:
            Without targets the logits, `(batch, position, n_vocab)`. With targets the losses, `(batch, position)`, 0
            where there is no target, or their sum: float32, in nats.

        Raises:
            ConfigError: learned positions, and more tokens than their capacity.
        """
        if targets is None:
            return self.logits(self.hidden(tokens, documents))
        if reduction == "sum" and writes_own_gradient(tokens.device):
            return summed_loss_of(self, tokens, targets, documents)
        losses = self.losses(self.hidden(tokens, documents), targets)
        return losses.sum() if reduction == "sum" else losses

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """`(batch, position, d_model)` and targets `(batch, position)` → their losses, as `token_losses`."""
        return token_losses(hidden, self.token_embedding.weight, targets, self.logits_at_once)

    def hidden(self, tokens: Tensor, scope: Scope | None = None, wanted: Tensor | None = None) -> Tensor:
        """What the logits are a product of, for those who need them at a few positions only.

        Args:
            tokens: `(batch, position)`, int64.
            scope: the documents `(batch, position)`, int64, that positions belong to, or a view, for rows that are not
                one sequence read from its beginning.
            wanted: `(batch, wanted)`, int64: the positions asked for, for those who need few; the last block computes
                no others. Not together with documents.

        Returns:
            `(batch, position, d_model)`, normed; or `(batch, wanted, d_model)`.

        Raises:
            ConfigError: as `forward`.
        """
        return self.trunk(self.token_embedding(tokens), scope, wanted)

    def trunk(self, x: Tensor, scope: Scope | None = None, wanted: Tensor | None = None) -> Tensor:
        """From embedded tokens `(batch, position, d_model)` to what `hidden` returns."""
        n_positions = x.shape[1]
        if self.position_embedding is not None:
            x = x + self._learned_positions(n_positions, scope)
        x = self.dropout(x)
        first = self.blocks[0].attention
        assert isinstance(first, Attention)
        scope = last = first.shared_scope(x, scope)
        if wanted is not None:
            last = scope.of(wanted) if isinstance(scope, View) else causal_view(n_positions, wanted)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, last if number == len(self.blocks) else scope)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """`(…, d_model)` → `(…, n_vocab)`."""
        return nn.functional.linear(hidden, self.token_embedding.weight)

    def _learned_positions(self, n_positions: int, scope: Scope | None) -> Tensor:
        """`(position, d_model)`, with a batch before where a view tells rows apart."""
        assert self.position_embedding is not None
        queries = scope.queries if isinstance(scope, View) else None
        length = scope.length if isinstance(scope, View) else n_positions
        if length is None:
            length = int(queries.max()) + 1  # type: ignore[union-attr]
        capacity = self.position_embedding.num_embeddings
        if length > capacity:
            raise ConfigError(f"{length} tokens exceed model.n_ctx={capacity}; learned positions can't extrapolate")
        weight = self.position_embedding.weight
        return weight[:length] if queries is None else weight[queries]
