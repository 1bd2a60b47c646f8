"""The configuration of a run's data: its corpora, and how they are prepared, mixed and cut into windows."""

import math
import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from gptstar.data.text.recall import Recall as Recall  # imported to register it
from gptstar.data.text.sources import SOURCES, Source
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, NotNegative, Role, Shown, Within, check_ranges

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class CorpusConfig:
    """The source of one corpus, and how much of it a run reads.

    Attributes:
        source: the name of the user's own source class, or a mapping of its keys with the name as `kind`; replaces
            `files` and `hub`.
        files: globs of the user's own files, local or at `s3://`, `gs://`, `https://`, `hf://`; replaces `hub`.
        hub: a dataset on the Hugging Face Hub, or a folder that `datasets` can read or has saved.
        hub_config: the dataset's configuration.
        revision: the dataset's commit, tag or branch.
        split: the dataset's split.
        column: the field or column with the text; `meta.title` is a field of that name, or else `title` inside `meta`.
        newer_than: skip documents whose `date_column` is not after this day.
        date_column: a field with a date (ISO 8601, or seconds since 1970).
        epochs: how often a run reads the corpus; 0.5 reads one half of the documents, always the same half.
        weight: the corpus's share of `data.mixture_tokens`; replaces `epochs`.
        max_tokens: like `data.max_tokens`, for this corpus only.
        licence: the licence that the manifest records.
        note: an explanation for the error if there is neither `source` nor `files` nor `hub`.
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
            raise ConfigError("data.corpora.*: source and files both name the text: give one of them")
        if (self.newer_than is None) != (self.date_column is None):
            raise ConfigError("data.corpora.*: newer_than and date_column go together: give both or neither")

    @property
    def fraction(self) -> float:
        """Share of the documents that the last, partial epoch reads; 0 if every epoch is whole."""
        return 0.0 if self.weight is not None else round(self.epochs % 1.0, 9)


@dataclass(frozen=True)
class DataConfig:
    """The text of a run: how it is tokenised and stored, mixed, and cut into windows.

    Attributes:
        source: `bundled` (text that ships with Python), `local` (the user's files), or `corpora` (those in `corpora`).
        files: globs of the user's files, for `source=local`; each folder is one corpus.
        corpora: corpora by name; with `source=local`, settings for the corpora that `files` finds.
        tokenizer: a `tokenizers` JSON file; None trains a BPE of `model.n_vocab` tokens on the text.
        shards: folder of the shards, or the address (`s3://` …) of prepared ones; None uses a folder in the user's
            cache, named by a hash of its content.
        clean: `ftfy` mends broken Unicode, as the original did; `none` leaves the text unchanged.
        end_of_text: write the token once `between` documents, or on `both` sides of each, as the original did.
        deduplicate: skip documents whose exact text occurred before, in any corpus.
        exclude: globs of benchmark items (`.jsonl`); documents that share 13 consecutive words with one are skipped.
        max_tokens: stop each corpus after this many tokens, at the end of the document.
        workers: processes that clean and tokenise; None starts one per core.
        shard_tokens: start a new shard after the document that reaches this many tokens.
        validation_fraction: share of documents held out, by a hash of their text; at least one document of each small
            corpus that has two.
        validation_tokens: most tokens of each corpus that a validation reads.
        context_length: tokens that the model reads at once in training.
        block_tokens: the unit of the data order; a multiple of `context_length`.
        windows: `stream` cuts windows from the stream of all documents; `documents` starts windows at document starts
            and leaves the rest of a document's last block empty.
        attention: `across` document boundaries in a window, or `within` each document.
        query_mark: text of one token that marks a query of one token: only the token after the query, its answer, is a
            target, in training and in validation. None: all tokens are targets.
        mixture_tokens: tokens of one pass through the mixture, if corpora have weights.
        shuffle_tokens: shuffle within groups of this many tokens, drawn from the whole text; None: shuffle everything.
        cache_bytes: size of the local cache of remote shards.
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
                f"data.context_length={self.context_length} does not divide data.block_tokens={self.block_tokens}, "
                "the unit of the data order: choose a divisor, or a larger block"
            )
        for key, done in (("validation_tokens", "validated"), ("shuffle_tokens", "shuffled")):
            value = getattr(self, key)
            if value is not None and value < self.block_tokens:
                raise ConfigError(
                    f"data.{key}={value} is less than one block (data.block_tokens={self.block_tokens}), so nothing "
                    f"would be {done}: raise it to one block or more"
                )

    @property
    def has_gaps(self) -> bool:
        """Return whether windows may hold positions without a target."""
        return self.windows == "documents" or self.query_mark is not None

    @property
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the only corpus's source, if that has one and no other is given."""
        sources = [corpus.source for corpus in self.corpora.values()]
        if self.tokenizer or self.files or len(sources) != 1 or sources[0] is None:
            return None
        return sources[0].tokenizer

    def _check_text(self) -> None:
        if self.source == "local" and self.files is None and self.shards is None and not self.corpora:
            raise ConfigError("data=local needs text: give data.files=GLOB, or data.shards=DIR with prepared shards")
        if self.source != "local" and self.files is not None:
            raise ConfigError(f"data.files is given, but data.source={self.source} does not read it: use data=local")
        if self.source == "corpora" and not self.corpora:
            raise ConfigError("data.source=corpora needs a corpus: give data.corpora, or use data=local")
        for name in self.corpora:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"data.corpora.{name}: the name of a corpus may hold letters, digits, _, - and . only: rename it"
                )
        weights = [corpus.weight for corpus in self.corpora.values()]
        if any(weight is not None for weight in weights):
            if None in weights:
                raise ConfigError("data.corpora: give every corpus a weight or none of them")
            if self.mixture_tokens is None:
                raise ConfigError("data.corpora have weights: give data.mixture_tokens=N, the tokens that they share")
        elif self.mixture_tokens is not None and self.corpora:
            raise ConfigError("data.mixture_tokens is given, but no corpus has a weight: give data.corpora.NAME.weight")
