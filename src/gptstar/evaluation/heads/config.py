"""The settings of a study of attention heads."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from gptstar.errors import ConfigError
from gptstar.evaluation.length.config import LengthConfig
from gptstar.fields import Count, Seed32, check_ranges

MAX_QUERIES = 2**12


@dataclass(frozen=True)
class HeadsConfig:
    """Settings of a study of attention heads.

    Attributes:
        study: the kind of evaluation, set by `evaluation=heads`.
        context_lengths: the context lengths in tokens; by default `multiples` of the training context.
        multiples: the context lengths to read at, as multiples of the training context.
        queries: the number of last tokens of a window whose weights are measured; by default half the shortest length.
        max_queries: the most queries in all windows together; windows are spread over the text.
        text, column, documents, last_bytes: the text, as in a study of context length.
        trained_at: the training context of a checkpoint that does not know it.
        batch_tokens: tokens read at once; by default as in a study of context length.
        seed: the seed of resampling for intervals.
    """

    KEY: ClassVar[str] = "evaluation"

    study: Literal["heads"] = "heads"
    context_lengths: tuple[int, ...] | None = None
    multiples: tuple[int, ...] = (1, 2, 4, 8)
    queries: Count | None = None
    max_queries: Count = MAX_QUERIES
    text: str | tuple[str, ...] | None = None
    column: str | None = None
    documents: Literal["apart", "joined"] | None = None
    last_bytes: Count | None = None
    trained_at: Count | None = None
    batch_tokens: Count | None = None
    seed: Seed32 = 1234

    def __post_init__(self) -> None:
        check_ranges(self, f"{self.KEY}.")
        if self.context_lengths is not None:
            self.queries_of(self.reading.lengths(None))

    @property
    def reading(self) -> LengthConfig:
        """The study of context length that reads the same text at the same lengths."""
        return LengthConfig(
            context_lengths=self.context_lengths,
            multiples=self.multiples,
            text=self.text,
            column=self.column,
            documents=self.documents,
            last_bytes=self.last_bytes,
            trained_at=self.trained_at,
            seed=self.seed,
        )

    def queries_of(self, lengths: tuple[int, ...]) -> int:
        """Return the number of tokens at the end of each window whose weights are measured.

        Raises:
            ConfigError: `queries` exceeds the shortest length; `lengths` are ascending.
        """
        if self.queries is not None and self.queries > lengths[0]:
            raise ConfigError(
                f"evaluation.queries={self.queries} exceeds the shortest context, {lengths[0]}: give at most that"
            )
        return self.queries or max(1, lengths[0] // 2)
