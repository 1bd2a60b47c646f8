"""The settings of a study of context length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, Seed32, check_ranges

if TYPE_CHECKING:  # it imports torch, which `gptstar compare` need not wait for
    from gptstar.model.positions import Positions

CONTROL = 512
"""With `fixed_targets`, the context length that longer ones are compared with."""
MAX_TOKENS = 2**20
MAX_FIXED_TARGETS = 2**16
"""The default number of targets with `fixed_targets`, where each target costs a share of a whole context."""

Cut = Literal["cut", "cut_with_sinks"]
CUTS: dict[Cut, int] = {"cut": 0, "cut_with_sinks": 4}
"""The controls that cut attention at the training context, with the number of first tokens that stay visible."""

Control = Literal[Cut, "truncated"]
TRUNCATED: Literal["truncated"] = "truncated"
"""The control that reads a training context of text only."""
CONTROLS: tuple[Control, ...] = (*CUTS, TRUNCATED)

Protocol = Literal["disjoint", "sliding", "fixed_targets", "legacy"]
RotaryScaling = Literal["none", "ntk", "yarn"]
AlibiScaling = Literal["none", "interpolated", "ntk"]


@dataclass(frozen=True)
class LengthConfig:
    """Settings of a study of context length.

    Attributes:
        study: the kind of evaluation, set by `evaluation=length`.
        context_lengths: the context lengths in tokens; by default `multiples` of the training context.
        multiples: the context lengths to read at, as multiples of the training context.
        protocol: `disjoint`: windows side by side; `sliding`: windows that overlap; `fixed_targets`: the same targets,
            each with about the whole length before it; `legacy`: the estimator that GPT* was published with.
        stride: for `sliding`: tokens from one window to the next; by default half the length.
        targets: for `fixed_targets`: tokens scored in a window; by default half the shortest length, the most allowed.
        room: for `fixed_targets`: the least number of tokens before each target; by default the longest length. Studies
            of different lengths with the same `room` and `targets` score the same targets.
        text: files, globs or addresses; by default the held-out text that the checkpoint was trained with.
        column: the text's field in JSON lines and Parquet; by default `text` or `page`.
        documents: `apart`: each window lies in one document; `joined`: all text is one stream, with end-of-text between
            documents. By default files are read apart, and held-out shards joined, as in training.
        last_bytes: the number of bytes to read at the end of plain text. 5,000,000 is the usual test set of enwik8 and
            text8.
        legacy_metric: for `legacy`: `perplexity` as it was measured on WikiText-2, `bits_per_byte` as on enwik8.
        max_tokens: the most targets, spread over the text; by default 2^20, for `fixed_targets` 2^16, for `legacy` all.
        trained_at: the training context of a checkpoint that does not know it.
        rotary_scaling, alibi_scaling: methods to read such positions beyond the training context.
        controls: for `fixed_targets`: beyond the training context, also read with attention cut at it, with and without
            the first tokens, and with the text truncated to it, and say whether the model uses the longer context.
        judge: for `fixed_targets`: a checkpoint of another run, which chooses the key tokens.
        dtype: the type of matrix products.
        batch_tokens: tokens read at once; by default 8,192 on a CPU and 65,536 on a GPU.
        seed: the seed of resampling for intervals.
    """

    KEY: ClassVar[str] = "evaluation"
    """The prefix of these keys in a configuration, for error messages."""

    study: Literal["length"] = "length"
    context_lengths: tuple[int, ...] | None = None
    multiples: tuple[int, ...] = (1, 2, 4, 8)
    protocol: Protocol = "disjoint"
    stride: Count | None = None
    targets: Count | None = None
    room: Count | None = None
    text: str | tuple[str, ...] | None = None
    column: str | None = None
    documents: Literal["apart", "joined"] | None = None
    last_bytes: Count | None = None
    legacy_metric: Literal["perplexity", "bits_per_byte"] = "perplexity"
    max_tokens: Count | None = None
    trained_at: Count | None = None
    rotary_scaling: tuple[RotaryScaling, ...] = ("none", "ntk", "yarn")
    alibi_scaling: tuple[AlibiScaling, ...] = ("none",)
    controls: Annotated[bool, Before(False)] = False
    judge: Annotated[str | None, Before(None)] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_tokens: Count | None = None
    seed: Seed32 = 1234

    def __post_init__(self) -> None:
        check_ranges(self, f"{self.KEY}.")
        for name in ("text", "rotary_scaling", "alibi_scaling", "context_lengths", "judge"):
            if getattr(self, name) in ("", ()):
                raise ConfigError(f"{self.KEY}.{name} is empty: name some, or leave it out")
        for name in ("rotary_scaling", "alibi_scaling", "context_lengths", "multiples"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ConfigError(f"{self.KEY}.{name}={list(values)} names one twice: name each once")
        if min(self.multiples, default=1) < 1:
            raise ConfigError(f"{self.KEY}.multiples: {min(self.multiples)} is below 1: give 1 or more")
        for name, protocol in (("stride", "sliding"), ("targets", "fixed_targets"), ("room", "fixed_targets")):
            if getattr(self, name) is not None and self.protocol != protocol:
                raise ConfigError(
                    f"{self.KEY}.{name} is for {self.KEY}.protocol={protocol}, not {self.protocol}: leave it out"
                )
        for name in ("controls", "judge"):
            if (value := getattr(self, name)) and self.protocol != "fixed_targets":
                raise ConfigError(
                    f"{self.KEY}.{name}={'true' if value is True else value} compares short and long contexts of the "
                    f"same targets, which {self.KEY}.protocol={self.protocol} does not read: give "
                    f"{self.KEY}.protocol=fixed_targets"
                )
        for name in ("rotary_scaling", "alibi_scaling"):
            if self.controls and "none" not in getattr(self, name):
                raise ConfigError(
                    f"{self.KEY}.controls=true compares positions as they are, which {self.KEY}.{name}="
                    f"[{','.join(getattr(self, name))}] leaves out: add none"
                )
        if self.protocol == "legacy" and self.text is None:
            raise ConfigError(f"{self.KEY}.protocol=legacy reads files: name them as {self.KEY}.text=[…]")
        if self.protocol == "fixed_targets" and self.documents == "joined":
            raise ConfigError(
                f"{self.KEY}.documents=joined would let contexts reach across documents, which "
                f"{self.KEY}.protocol=fixed_targets is there to rule out: leave it out"
            )
        if self.context_lengths is not None:
            self._check_lengths(self.context_lengths)

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        least, shortest = 1 if self.protocol in ("disjoint", "sliding") else 2, min(lengths)
        if shortest < least:
            raise ConfigError(f"{self.KEY}.context_lengths: {shortest} is below {least}: give {least} or more")
        if self.room is not None and self.room < max(lengths):
            raise ConfigError(
                f"{self.KEY}.room={self.room} is less than the longest context, {max(lengths)}: give that or more"
            )
        if self.stride is not None and self.stride > shortest:
            raise ConfigError(
                f"{self.KEY}.stride={self.stride} exceeds the shortest context, {shortest}, so windows would leave "
                "tokens out: give at most that"
            )
        shortest = min(self.with_control(lengths))
        if self.targets is not None and self.targets > shortest // 2:
            raise ConfigError(
                f"{self.KEY}.targets={self.targets} exceeds half the shortest context, {shortest}, so a target's "
                f"context could be less than half of what its row says: give at most {shortest // 2}"
            )

    def lengths(self, trained_at: int | None) -> tuple[int, ...]:
        """Return the context lengths, ascending, for a training context; None if it is unknown.

        Raises:
            ConfigError: neither lengths nor a training context are known, or they contradict another key.
        """
        if self.context_lengths is not None:
            return self.with_training_contexts(self.context_lengths, [trained_at] if trained_at else [])
        if trained_at is None:
            raise ConfigError(
                f"the checkpoint does not know its training context: give {self.KEY}.context_lengths=[…], or "
                f"{self.KEY}.trained_at for its multiples"
            )
        if not self.multiples:
            raise ConfigError(f"{self.KEY}.multiples is empty: name some, or {self.KEY}.context_lengths")
        lengths = self.with_training_contexts([multiple * trained_at for multiple in self.multiples], [trained_at])
        self._check_lengths(lengths)
        return lengths

    def with_training_contexts(self, lengths: Sequence[int], trained_at: Sequence[int]) -> tuple[int, ...]:
        """Return the lengths, ascending; with controls or a judge, add the training contexts that they exceed.

        Raises:
            ConfigError: with controls or a judge, if no length exceeds a training context.
        """
        if not self.compares_contexts or not trained_at:
            return tuple(sorted(lengths))
        longest = max(lengths)
        if longest <= min(trained_at):
            key = "controls=true" if self.controls else f"judge={self.judge}"
            raise ConfigError(
                f"{self.KEY}.{key} is about contexts beyond the training context, {min(trained_at):,} tokens, and the "
                f"longest read is {longest:,}: read longer ones"
            )
        return tuple(sorted({*lengths, *(each for each in trained_at if each < longest)}))

    def with_control(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return the lengths, ascending; with `fixed_targets`, add the control if all of them are longer."""
        has_control = self.protocol == "fixed_targets" and min(lengths) > CONTROL
        return tuple(sorted([CONTROL, *lengths] if has_control else lengths))

    def scalings_of(self, positions: "Positions") -> tuple[str, ...]:
        """Return the chosen scalings that a kind of positions has; `none` if it has none of them."""
        chosen: tuple[str, ...] = getattr(self, positions.scaling_key, ())
        return tuple(each for each in chosen if each == "none" or each in positions.scalings) or ("none",)

    @property
    def compares_contexts(self) -> bool:
        """Whether longer contexts are compared with the training context."""
        return self.controls or self.judge is not None

    @property
    def control_readings(self) -> tuple[Control, ...]:
        """The controls that each checkpoint is read under as well."""
        return CONTROLS if self.controls else ()

    @property
    def reads(self) -> bool:
        """Whether any length is named."""
        return bool(self.multiples or self.context_lengths)

    @property
    def paths(self) -> tuple[str, ...]:
        """The patterns in `text`, as a tuple."""
        return (self.text,) if isinstance(self.text, str) else self.text or ()

    @property
    def limit(self) -> int | None:
        """The most targets to score; None for all."""
        if self.max_tokens is not None or self.protocol == "legacy":
            return self.max_tokens
        return MAX_FIXED_TARGETS if self.protocol == "fixed_targets" else MAX_TOKENS


@dataclass(frozen=True)
class ReadingConfig(LengthConfig):
    """Settings of a study of context length at the end of a training run."""

    KEY: ClassVar[str] = "reading"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None:
            raise ConfigError(
                f"reading.judge={self.judge} can't be used in training: give evaluate.py evaluation.judge={self.judge}"
            )
