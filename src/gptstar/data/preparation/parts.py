"""Requests to prepare text, and parts of them: each of several machines prepares a part, and the parts are merged."""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from gptstar.data.config import DataConfig
from gptstar.data.storage.manifest import FORMAT_VERSION, Manifest, Source, read_manifest, write_manifest
from gptstar.data.text.clean import CLEANER
from gptstar.data.text.corpora import Corpus, find_files
from gptstar.data.text.records import EXAMPLES
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.files import file_sha256

FOLDER = re.compile(r"part-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Part:
    """Part `number` of `of`, counted from 1: a contiguous share of the files, so that their order is preserved."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a text like `3/16`; raise ConfigError for anything else."""
        match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"part={text} is not a part: give part=3/16 for the third of sixteen")
        return cls(int(match[1]), int(match[2]))

    @property
    def folder(self) -> str:
        """The name of this part's folder inside the folder of the whole."""
        return f"part-{self.number:05d}-of-{self.of:05d}"

    def of_corpora(self, corpora: Sequence[Corpus]) -> list[Corpus]:
        """Select each corpus's units in this part; all parts have about the same number of bytes."""
        known = [unit.size for corpus in corpora for unit in corpus.units if unit.size]
        usual = sum(known) // len(known) if known else 1  # for units of unknown size
        sizes = [[unit.size or usual for unit in corpus.units] for corpus in corpora]
        total = sum(map(sum, sizes))
        before = 0
        mine = []
        for corpus, unit_sizes in zip(corpora, sizes, strict=True):
            units = []
            for unit, size in zip(corpus.units, unit_sizes, strict=True):
                if (before + size / 2) * self.of // total == self.number - 1:
                    units.append(unit)
                before += size
            others = {unit.name for unit in corpus.units} - {unit.name for unit in units}
            files = tuple(name for name in corpus.files if name not in others)
            mine.append(replace(corpus, units=tuple(units), files=files))
        return mine


@dataclass(frozen=True)
class Request:
    """A request to prepare text, and its identity.

    If `tokenizer` is None, one of `n_vocab` tokens is trained on the documents that are not held out.
    """

    config: DataConfig
    corpora: tuple[Corpus, ...]
    tokenizer: Tokenizer | None
    n_vocab: int
    part: Part | None

    @functools.cached_property
    def whole(self) -> str:
        """Hash of everything that decides the shards, except the part."""
        config = self.config
        words = [FORMAT_VERSION, self.tokenizer.fingerprint if self.tokenizer else f"bpe-{self.n_vocab}"]
        words += [config.validation_fraction, *self.options.values(), config.max_tokens, config.shard_tokens]
        for corpus in self.corpora:
            words += [corpus.name, corpus.identity, corpus.config.fraction, corpus.config.epochs < 1.0]
            words += [corpus.config.max_tokens]
        return hashlib.sha256("\n".join(map(str, words)).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Hash of everything that decides the shards, with the part."""
        return f"{self.whole}-{self.part.folder}" if self.part else self.whole

    @functools.cached_property
    def options(self) -> dict[str, str]:
        """The treatment of the text, in words, for the manifest. The words are part of `whole`: don't change them."""
        config = self.config
        return {
            "clean": CLEANER if config.clean == "ftfy" else "none",
            "end of text": config.end_of_text,
            "duplicates": "left out" if config.deduplicate else "kept",
            "excluded": " ".join(f"{path.name} {file_sha256(path)}" for path in self.exclude) or "nothing",
        }

    @functools.cached_property
    def exclude(self) -> list[Path]:
        """The files of benchmark items to exclude."""
        return [Path(name) for name in find_files(self.config.exclude)]

    @property
    def mine(self) -> list[Corpus]:
        """The corpora, or this part's share of them."""
        return self.part.of_corpora(self.corpora) if self.part else list(self.corpora)


def merge(folder: Path) -> Manifest | None:
    """Write the manifest of the whole once all parts exist; the parts' files stay in place.

    Returns:
        The manifest; None while a part is missing.

    Raises:
        DataError: the parts don't belong to the same whole.
    """
    paths = sorted(path for path in folder.glob("part-*-of-*/manifest.json") if FOLDER.fullmatch(path.parent.name))
    if not paths:
        raise DataError(
            f"{folder} holds no part (part-00001-of-…/manifest.json): prepare the parts with part=1/N, part=2/N …"
        )
    parts = {path.parent.name: read_manifest(path) for path in paths}
    first = next(iter(parts.values()))
    n_parts = int(paths[0].parent.name.rpartition("-")[2])
    for name, part in parts.items():
        if (part.identity, name.rpartition("-")[2]) != (f"{first.whole}-{name}", f"{n_parts:05d}"):
            other = paths[0].parent
            raise DataError(f"{folder / name} and {other} are parts of different preparations: remove one of them")
    if len(parts) < n_parts:
        return None
    shards = tuple(replace(shard, name=f"{name}/{shard.name}") for name, m in parts.items() for shard in m.shards)
    sources = {corpus: _added([part.sources[corpus] for part in parts.values()]) for corpus in first.sources}
    by_corpus = tuple(shard for corpus in sources for shard in shards if shard.corpus == corpus)
    whole = replace(first, identity=first.whole, sources=sources, shards=by_corpus)
    write_manifest(folder, whole, Tokenizer.from_file(paths[0].parent / "tokenizer.json"))
    return whole


def _added(sources: Sequence[Source]) -> Source:
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for source in sources:
        counts.update(source.counts)
        for reason, places in source.examples.items():
            examples[reason] = (examples.get(reason, []) + places)[:EXAMPLES]
    files = [stamp for source in sources for stamp in source.files]
    return replace(sources[0], counts=dict(counts), examples=examples, files=files)
