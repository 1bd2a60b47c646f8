"""At which context lengths to read what, and which of its tokens count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptstar.errors import ConfigError
from gptstar.fields import Count, Seed32, check_ranges

CONTROL = 512
"""The context that longer ones are measured against where the same targets are read at each."""
MAX_TOKENS = 2**20
MAX_FIXED_TARGETS = 2**16
"""Unless given: each of them costs a share of a whole context."""

Protocol = Literal["disjoint", "sliding", "fixed_targets", "legacy"]
Scaling = Literal["none", "ntk", "yarn"]


@dataclass(frozen=True)
class LengthConfig:
    """A study of context length.

    Attributes:
        study: what tells this apart from other evaluations.
        context_lengths: in tokens; unless given, multiples of the training context.
        multiples: of the training context.
        protocol: `disjoint`, windows side by side; `sliding`, windows that overlap; `fixed_targets`, the same targets
            with a context of about the whole length each; `legacy`, the estimator that GPT* was published with.
        stride: of `sliding`: tokens from one window to the next; half the length unless given.
        targets: of `fixed_targets`: tokens scored in a window; half the shortest length unless given, and at most that.
        room: of `fixed_targets`: tokens before each target at least; the longest length unless given. With the same
            `room` and `targets`, studies of other lengths score the same targets.
        text: files, globs or addresses; the held-out text that the checkpoint was trained with, unless given.
        column: of the text in JSON lines and Parquet; `text` or `page` unless given.
        documents: `apart`, no window reaches across two; `joined`, all text is one stream with end-of-text between.
            Unless given, files are read apart and held-out shards joined, as in training.
        last_bytes: of plain text: read its end only. 5,000,000 is the usual test set of enwik8 and text8.
        legacy_metric: of `legacy`: `perplexity` as it was taken of WikiText-2, `bits_per_byte` as of enwik8 and text8.
        max_tokens: at most this many targets, spread over the text; 2^20 unless given, 2^16 with `fixed_targets`, and
            with `legacy` all.
        trained_at: the training context, where a checkpoint does not say.
        rotary_scaling: how rotary positions are read beyond the training context; other positions know no scaling.
        dtype: of the products.
        batch_tokens: read at once; 8,192 on a CPU and 65,536 on a GPU unless given.
        seed: of resampling.
    """

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
    rotary_scaling: tuple[Scaling, ...] = ("none", "ntk", "yarn")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_tokens: Count | None = None
    seed: Seed32 = 1234

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation.")
        if self.text is not None and not self.text:
            raise ConfigError("evaluation.text is empty: name files, or leave it out")
        if not self.rotary_scaling or len(set(self.rotary_scaling)) < len(self.rotary_scaling):
            raise ConfigError(
                f"evaluation.rotary_scaling={list(self.rotary_scaling)} has to name each of none, ntk and yarn that it "
                "wants once"
            )
        if min(self.multiples, default=1) < 1 or len(set(self.multiples)) < len(self.multiples):
            raise ConfigError(f"evaluation.multiples={list(self.multiples)} has to name numbers from 1, each once")
        for name, protocol in (("stride", "sliding"), ("targets", "fixed_targets"), ("room", "fixed_targets")):
            if getattr(self, name) is not None and self.protocol != protocol:
                raise ConfigError(
                    f"evaluation.{name} is for evaluation.protocol={protocol}, not {self.protocol}: leave it out"
                )
        if self.protocol == "legacy" and self.text is None:
            raise ConfigError("evaluation.protocol=legacy reads files: name them as evaluation.text=[…]")
        if self.protocol == "fixed_targets" and self.documents == "joined":
            raise ConfigError(
                "evaluation.documents=joined would let contexts reach across documents, which "
                "evaluation.protocol=fixed_targets is there to rule out: leave it out"
            )
        if self.context_lengths is not None:
            self.check_lengths(self.context_lengths)

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Refuse lengths that make no sense with the rest.

        Raises:
            ConfigError: names the length.
        """
        if not lengths:
            raise ConfigError("evaluation.context_lengths is empty: name some, or leave it out")
        least = 1 if self.protocol in ("disjoint", "sliding") else 2
        if min(lengths) < least:
            raise ConfigError(f"evaluation.context_lengths: {min(lengths)} is below {least}")
        if len(set(lengths)) < len(lengths):
            raise ConfigError(f"evaluation.context_lengths={list(lengths)} names a length twice")
        if self.room is not None and self.room < max(lengths):
            raise ConfigError(
                f"evaluation.room={self.room} is less than the longest context, {max(lengths)}: give that or more"
            )
        shortest = min(lengths)
        if self.stride is not None and self.stride > shortest:
            raise ConfigError(
                f"evaluation.stride={self.stride} exceeds the shortest context, {shortest}, so windows would leave "
                "tokens out: give at most that"
            )
        shortest = min(self.with_control(lengths))
        if self.targets is not None and self.targets > shortest // 2:
            raise ConfigError(
                f"evaluation.targets={self.targets} exceeds half the shortest context, {shortest}, so a target's "
                f"context could be less than half of what its row says: give at most {shortest // 2}"
            )

    def lengths(self, trained_at: int | None) -> tuple[int, ...]:
        """The context lengths, ascending.

        Args:
            trained_at: the training context, or None where nobody knows it.

        Raises:
            ConfigError: neither lengths nor a training context are known, or they make no sense with the rest.
        """
        if self.context_lengths is not None:
            return tuple(sorted(self.context_lengths))
        if trained_at is None:
            raise ConfigError(
                "the checkpoint does not know its training context: give evaluation.context_lengths=[…], or "
                "evaluation.trained_at for its multiples"
            )
        if not self.multiples:
            raise ConfigError("evaluation.multiples is empty: name some, or evaluation.context_lengths")
        lengths = tuple(multiple * trained_at for multiple in sorted(self.multiples))
        self.check_lengths(lengths)
        return lengths

    def with_control(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """The lengths, ascending, and with `fixed_targets` the control where all of them are longer."""
        extra = {CONTROL} if self.protocol == "fixed_targets" and min(lengths) > CONTROL else set[int]()
        return tuple(sorted({*lengths, *extra}))

    @property
    def reads(self) -> bool:
        """Whether lengths are named at all."""
        return bool(self.multiples or self.context_lengths)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that were named."""
        return (self.text,) if isinstance(self.text, str) else self.text or ()

    @property
    def limit(self) -> int | None:
        """Targets at most."""
        if self.max_tokens is not None or self.protocol == "legacy":
            return self.max_tokens
        return MAX_FIXED_TARGETS if self.protocol == "fixed_targets" else MAX_TOKENS
