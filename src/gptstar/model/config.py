"""The configuration of a model: its sizes and variants."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from gptstar.choices import Choices, parse_fields
from gptstar.errors import ConfigError
from gptstar.fields import Before, BelowOne, Count, NotNegative, Role, Shown, check_ranges
from gptstar.model.blocks import BLOCKS
from gptstar.model.mask import Mask
from gptstar.model.positions import POSITIONS, Alibi, Positions
from gptstar.model.softmax_scale import SoftmaxScale, SSMax

SOFTMAX_SCALES: Choices[SoftmaxScale] = Choices("model.softmax_scale", tag="kind", is_word=True)
SOFTMAX_SCALES.register("none")(SoftmaxScale)  # not as decorators: their file goes into exported folders
SOFTMAX_SCALES.register("ssmax")(SSMax)


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and variants of a model: everything needed to build it.

    Attributes:
        n_layers, d_model, n_heads, n_vocab: number of blocks, width, number of heads, and size of the vocabulary.
        d_head, d_ff: width of a head, by default `d_model / n_heads`, and of the MLP, by default `4 * d_model`.
        residual: the name of a block: `parallel`, `sequential`, or the user's own. It may be given as a mapping of the
            name (`kind`) and the module that defines it (`plugin`).
        positions: the kind of positions. It may be given as a name, or as a mapping of its keys with the name as
            `kind`.
        n_ctx: the number of learned positions; None for all other kinds.
        attention_window, attention_sinks: the window and the attention sinks of `mask`; None means no window.
        softmax_scale: the scale of attention scores. It may be given as a name, or as a mapping like `positions`.
        gelu: `exact` (erf) or `tanh`, GPT-2's approximation.
        dropout: probability of dropout on embeddings, attention weights and both branches of a block.
        residual_init: std of the residual projections: 0.02 / sqrt(2 n_layers) as in GPT-2, or 0.02 / sqrt(n_layers)
            as in the original GPT* (`legacy`).
    """

    n_layers: Annotated[Count, Shown.ALWAYS]
    d_model: Annotated[Count, Shown.ALWAYS]
    n_heads: Annotated[Count, Shown.ALWAYS]
    n_vocab: Annotated[Count, Shown.ALWAYS]
    d_head: Count | None = None
    d_ff: Count | None = None
    residual: str = "parallel"
    positions: Annotated[Positions, POSITIONS] = field(default_factory=Alibi)
    n_ctx: Count | None = None
    attention_window: Annotated[Count | None, Before(None)] = None
    attention_sinks: Annotated[NotNegative, Before(0)] = 0
    softmax_scale: Annotated[SoftmaxScale, SOFTMAX_SCALES, Before("none")] = field(default_factory=SoftmaxScale)
    gelu: Literal["exact", "tanh"] = "exact"
    dropout: BelowOne = 0.0
    residual_init: Annotated[Literal["gpt2", "legacy"], Role.CHANGEABLE] = "gpt2"

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        if self.d_head is None and self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model={self.d_model} does not divide by model.n_heads={self.n_heads}: "
                "change one, or give the head width as model.d_head"
            )
        positions = self.positions if isinstance(self.positions, Positions) else POSITIONS.parse(self.positions)
        if self.n_ctx is not None and positions.needs_capacity:
            positions = positions.with_capacity(self.n_ctx)
        if self.n_ctx not in (None, positions.capacity):
            capacity = "no context length" if positions.capacity is None else f"a capacity of {positions.capacity}"
            raise ConfigError(
                f"model.n_ctx={self.n_ctx} does not fit model.positions={POSITIONS.name_of(positions)}, with which the "
                f"model has {capacity}: drop model.n_ctx (the training length is data.context_length)"
            )
        scale = self.softmax_scale
        scale = scale if isinstance(scale, SoftmaxScale) else SOFTMAX_SCALES.parse(scale)
        object.__setattr__(self, "softmax_scale", scale)
        object.__setattr__(self, "residual", _block_name(self.residual))
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "n_ctx", positions.capacity)
        try:
            positions.check(self)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        try:
            _ = self.mask
        except ValueError as error:
            raise ConfigError(f"model.{error}") from error

    @classmethod
    def parse(cls, tree: Any) -> Self:
        """Build a configuration from what `as_dict` returned, and check its values.

        Raises:
            ConfigError: a key is unknown, or a value breaks a rule; the message names the key.
        """
        if not isinstance(tree, dict):
            raise ConfigError(f"model={tree} is not a mapping of keys")
        return parse_fields(cls, tree | {"residual": _block_name(tree.get("residual", "parallel"))}, "model")

    @property
    def mask(self) -> Mask:
        """The attention mask beyond causality: a sliding window with sinks."""
        return Mask(self.attention_window, self.attention_sinks)

    @property
    def modifiers(self) -> tuple[str, ...]:
        """Changes of attention other than positions, in words such as `a window of 512`; empty if there are none."""
        window, sinks = self.attention_window, self.attention_sinks
        scale = SOFTMAX_SCALES.name_of(self.softmax_scale)
        in_words = {f"a window of {window}": window, f"{sinks} sinks": sinks, scale: self.softmax_scale.counts_keys}
        return tuple(word for word, is_on in in_words.items() if is_on)

    @property
    def head_width(self) -> int:
        """Width of a head, given or derived."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's hidden layer, given or derived."""
        return self.d_ff or 4 * self.d_model

    def check_length(self, key: str, length: int) -> None:
        """Raise a ConfigError if a length, called `key` in the message, exceeds the positions' capacity."""
        if self.n_ctx is not None and length > self.n_ctx:
            raise ConfigError(
                f"{key}={length} exceeds model.n_ctx={self.n_ctx}; {POSITIONS.name_of(self.positions)} positions "
                "cannot extrapolate: shorten the context or use model.positions=alibi"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return every field, with derived widths; a choice is its name, or a mapping if it has keys."""
        resolved = replace(self, d_head=self.head_width, d_ff=self.mlp_width)
        positions = POSITIONS.describe(self.positions)
        scale = SOFTMAX_SCALES.describe(self.softmax_scale)
        is_name = positions.keys() <= {POSITIONS.tag, "n_ctx"}  # the capacity stands beside the positions
        plugin = BLOCKS.plugin_of(BLOCKS.find(self.residual))
        return asdict(resolved) | {
            "residual": {BLOCKS.tag: self.residual, "plugin": plugin} if plugin else self.residual,
            "positions": positions[POSITIONS.tag] if is_name else positions,
            "softmax_scale": scale[SOFTMAX_SCALES.tag] if scale.keys() == {SOFTMAX_SCALES.tag} else scale,
        }

    @property
    def n_params(self) -> int:
        """Number of parameters, computed without building the model; the tied embedding counts once."""
        D, F, A = self.d_model, self.mlp_width, self.n_heads * self.head_width
        attention = (D + 1) * 3 * A + (A + 1) * D
        mlp = (D + 1) * F + (F + 1) * D
        blocks = self.n_layers * (attention + mlp + BLOCKS.find(self.residual).n_own_params(D)) + self._n_scale_params
        return self.n_vocab * D + self.positions.n_params(self) + blocks + 2 * D

    def training_flops(self, context_length: int) -> int:
        """Return floating-point operations per training token: `6 N + 12 L H K T`.

        N excludes the parameters of positions and of the softmax scale. T is the number of keys that a query at the end
        of the context attends to: the context length, or less with a window.

        Source: Chowdhery et al., "PaLM", 2022, appendix B.
        """
        matmul_params = self.n_params - self.positions.n_params(self) - self._n_scale_params
        if self.attention_window is not None:
            context_length = min(context_length, self.attention_window + self.attention_sinks)
        return 6 * matmul_params + 12 * self.n_layers * self.n_heads * self.head_width * context_length

    @property
    def _n_scale_params(self) -> int:
        return self.n_layers * self.softmax_scale.n_params(self.n_heads)


def _block_name(given: Any) -> str:
    """Return the name of a known block, given as a name or a mapping; raise a ConfigError for anything else."""
    tree = dict(given) if isinstance(given, Mapping) else {BLOCKS.tag: given}
    name = tree.pop(BLOCKS.tag, None)
    if not isinstance(name, str) or tree.keys() - {"plugin"}:
        raise ConfigError(f"model.residual={given} is not a name: choose one of {', '.join(BLOCKS.names())}")
    BLOCKS.find(name, tree.get("plugin"))
    return name
