"""What is to be prepared, and the name that follows from all that decides the outcome."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from gptstar.data.config import DataConfig
from gptstar.data.preparation.parts import Part
from gptstar.data.storage.manifest import FORMAT_VERSION
from gptstar.data.text.clean import CLEANER
from gptstar.data.text.corpora import Corpus, find_files
from gptstar.data.tokenizer import Tokenizer
from gptstar.files import file_sha256


@dataclass(frozen=True)
class Request:
    """What is to be prepared, and what it is called.

    Without a tokenizer, one of `n_vocab` tokens is trained on the documents that are not held out.
    """

    config: DataConfig
    corpora: tuple[Corpus, ...]
    tokenizer: Tokenizer | None
    n_vocab: int
    part: Part | None

    @functools.cached_property
    def whole(self) -> str:
        """Hash of everything that decides the shards, but the part."""
        config = self.config
        words = [FORMAT_VERSION, self.tokenizer.fingerprint if self.tokenizer else f"bpe-{self.n_vocab}"]
        words += [config.validation_fraction, *self.options.values(), config.max_tokens, config.shard_tokens]
        for corpus in self.corpora:
            words += [corpus.name, corpus.identity, corpus.config.fraction, corpus.config.epochs < 1.0]
            words += [corpus.config.max_tokens]
        return hashlib.sha256("\n".join(map(str, words)).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Hash of everything that decides the shards."""
        return f"{self.whole}-{self.part.folder}" if self.part else self.whole

    @functools.cached_property
    def options(self) -> dict[str, str]:
        """How the text was treated, in words."""
        config = self.config
        return {
            "clean": CLEANER if config.clean == "ftfy" else "none",
            "end of text": config.end_of_text,
            "duplicates": "left out" if config.deduplicate else "kept",
            "excluded": " ".join(f"{path.name} {file_sha256(path)}" for path in self.exclude) or "nothing",
        }

    @functools.cached_property
    def exclude(self) -> list[Path]:
        """Files of benchmark items."""
        return [Path(name) for name in find_files(self.config.exclude)]

    @property
    def mine(self) -> list[Corpus]:
        """The corpora, or this part's share of them."""
        return self.part.of_corpora(self.corpora) if self.part else list(self.corpora)
