"""What the data of a run is: which corpora, how they are prepared, mixed and cut into windows."""

import math
import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from gptstar.data.text.recall import Recall as Recall  # which registers it
from gptstar.data.text.sources import SOURCES, Source
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, NotNegative, Role, Shown, Within, check_ranges

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class CorpusConfig:
    """A corpus: where it comes from, and how much of it a run reads.

    Attributes:
        source: documents from the user's own code, by the name of its class or a mapping of its keys with the name as
            `kind`; instead of `files` and `hub`.
        files: globs of the user's own files, local or `s3://`, `gs://`, `https://`, `hf://`; used instead of `hub`.
        hub: a dataset on the Hugging Face Hub, or a folder that `datasets` reads or has saved.
        hub_config: which of the dataset's configurations.
        revision: commit, tag or branch of the dataset.
        split: of the dataset.
        column: the field or column that holds the text; `meta.title` is one of that name, or else looks inside `meta`.
        newer_than: leave out documents whose `date_column` is not after this day.
        date_column: a field with a date (ISO 8601, or seconds since 1970).
        epochs: how often a run reads it; of 0.5, always the same half of the documents.
        weight: its share of `data.mixture_tokens` instead of `epochs`.
        max_tokens: as `data.max_tokens`, of this corpus.
        licence: for the manifest.
        note: what to say when there is neither `source` nor `files` nor `hub`.
    """

    source: Annotated[Source | None, SOURCES] = None
    files: str | tuple[str, ...] | None = None
    hub: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str = "text"
    newer_than: date | None = None
    date_column: str | None = None
    epochs: float = 1.0
    weight: float | None = None
    max_tokens: Count | None = None
    licence: str = "not stated"
    note: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "data.corpora.*.")
        if not 1e-6 <= self.epochs <= 1e4:
            raise ConfigError(f"data.corpora.*.epochs={self.epochs} is not between 0.000001 and 10,000")
        if self.weight is not None and not 0.0 < self.weight < math.inf:
            raise ConfigError(f"data.corpora.*.weight={self.weight} is not above 0: leave the corpus out instead")
        if self.source is not None and self.files is not None:
            raise ConfigError("data.corpora.*: source and files both say where the text is from: give one")
        if (self.newer_than is None) != (self.date_column is None):
            raise ConfigError("data.corpora.*: newer_than and date_column go together: give both or neither")

    @property
    def fraction(self) -> float:
        """Share of the documents that the last, partial epoch reads; 0 where every epoch is whole."""
        return 0.0 if self.weight is not None else round(self.epochs % 1.0, 9)


@dataclass(frozen=True)
class DataConfig:
    """Which text, how it is tokenised and stored, how it is mixed and cut into windows.

    Attributes:
        source: `bundled` (what every Python carries), `local` (the user's files), or `corpora` (those named below).
        files: globs of the user's files; each folder they lie in is a corpus. With `source=local`.
        corpora: corpora by name; with `source=local`, settings for those that `files` finds.
        tokenizer: a `tokenizers` JSON; without one, a BPE of `model.n_vocab` tokens is trained on the text.
        shards: folder of the shards, or its address (`s3://` …) when they are prepared already; without one, a folder
            in the user's cache named by its content.
        clean: `ftfy` mends broken Unicode, as the original did; `none` takes the text as it is.
        end_of_text: `between` documents once, or on `both` sides of each, as the original did.
        deduplicate: leave out documents whose exact text was met before, in any corpus.
        exclude: globs of benchmark items (`.jsonl`); documents that share 13 words in a row with one are left out.
        max_tokens: prepare at most this many tokens of each corpus, and the rest of the document they end in.
        workers: processes that clean and tokenise; None is one a core.
        shard_tokens: a shard is closed by the document that reaches this many.
        validation_fraction: share of documents held out, by a hash of their text; at least one of each small corpus
            that has two.
        validation_tokens: at most this many tokens of each corpus are read in a validation.
        context_length: tokens the model sees at once in training.
        block_tokens: the unit of order; the context length divides it.
        windows: cut from the `stream` of all documents, or starting at `documents`, the rest of whose last block is
            left empty.
        attention: `across` all that a window holds, or `within` each of its documents.
        query_mark: text of one token that stands before a query of one token: only the token after the query, its
            answer, is a target, in training and in validation. None: all tokens are targets.
        mixture_tokens: tokens of one pass through the mixture where corpora have weights.
        shuffle_tokens: order is random within groups of this many tokens, drawn from all over; None: one group.
        cache_bytes: room on this machine for shards that are read from afar.
        loader_workers: processes that read ahead (0: none).
    """

    source: Literal["bundled", "local", "corpora"]
    context_length: Annotated[Count, Role.RESULT, Shown.ALWAYS]
    block_tokens: Annotated[Count, Role.RESULT] = 1024
    windows: Annotated[Literal["stream", "documents"], Role.RESULT, Before("stream")] = "stream"
    attention: Annotated[Literal["across", "within"], Role.RESULT, Before("across")] = "across"
    query_mark: Annotated[str | None, Role.RESULT, Before(None)] = None
    files: str | tuple[str, ...] | None = None
    corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    tokenizer: Path | None = None
    shards: Annotated[str | None, Role.SOURCE] = None
    clean: Literal["ftfy", "none"] = "ftfy"
    end_of_text: Literal["between", "both"] = "between"
    deduplicate: bool = False
    exclude: str | tuple[str, ...] = ()
    max_tokens: Count | None = None
    workers: Annotated[Count | None, Role.RECORD] = None
    shard_tokens: Count = 2**26
    validation_fraction: Within = 0.05
    validation_tokens: int = 2**20
    mixture_tokens: Count | None = None
    shuffle_tokens: Annotated[Count | None, Role.RESULT, Before(None)] = None
    cache_bytes: Annotated[Count, Role.RECORD] = 2**34
    loader_workers: Annotated[NotNegative, Role.MACHINE] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "data.")
        self._check_text()
        if self.block_tokens % self.context_length:
            raise ConfigError(
                f"data.context_length={self.context_length} does not divide data.block_tokens={self.block_tokens}, the "
                "unit of order: choose a divisor, or a larger block"
            )
        for key, done in (("validation_tokens", "validated"), ("shuffle_tokens", "shuffled")):
            value = getattr(self, key)
            if value is not None and value < self.block_tokens:
                raise ConfigError(
                    f"data.{key}={value} is less than a block (data.block_tokens={self.block_tokens}): nothing would "
                    f"be {done}"
                )

    @property
    def has_gaps(self) -> bool:
        """Tell whether windows may hold positions without a target."""
        return self.windows == "documents" or self.query_mark is not None

    @property
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the source of the only corpus brings, if it does and no other is given."""
        sources = [corpus.source for corpus in self.corpora.values()]
        if self.tokenizer or self.files or len(sources) != 1 or sources[0] is None:
            return None
        return sources[0].tokenizer

    def _check_text(self) -> None:
        if self.source == "local" and self.files is None and self.shards is None and not self.corpora:
            raise ConfigError(
                "data=local needs text: give data.files=GLOB, or data.shards=DIR that is prepared already"
            )
        if self.source != "local" and self.files is not None:
            raise ConfigError(f"data.files is given but data.source={self.source} does not read it: use data=local")
        if self.source == "corpora" and not self.corpora:
            raise ConfigError("data.source=corpora names no corpus: give data.corpora, or use data=local")
        for name in self.corpora:
            if not NAME.fullmatch(name):
                raise ConfigError(f"data.corpora.{name}: a corpus is named by letters, digits, _, - and .")
        weights = [corpus.weight for corpus in self.corpora.values()]
        if any(weight is not None for weight in weights):
            if None in weights:
                raise ConfigError("data.corpora: give every corpus a weight or none of them")
            if self.mixture_tokens is None:
                raise ConfigError("data.corpora have weights: give data.mixture_tokens=N, the tokens they share")
        elif self.mixture_tokens is not None and self.corpora:
            raise ConfigError("data.mixture_tokens is given but no corpus has a weight: give data.corpora.NAME.weight")
