"""Text to shards, once: tokenise, hold out validation documents, pack, and write the manifest."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gptstar.data.corpora import Corpus, bundled_corpora, local_corpora
from gptstar.data.shards import FORMAT_VERSION, Manifest, Shard, ShardFolder, ShardWriter, Split, write_manifest
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError

DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True)
class DataConfig:
    """Which text, how it is tokenised and stored, and how it is cut into windows.

    Attributes:
        source: `bundled` (what every Python carries) or `local` (the user's files).
        files: glob patterns of local files; each folder they lie in is a corpus.
        tokenizer: a `tokenizers` JSON; without one, a BPE of `model.n_vocab` tokens is trained on the text.
        shards: folder of the shards; without one, a folder in the user's cache named by its content.
        validation_fraction: share of documents held out, by a hash of their text; at least one of each corpus that
            has two.
        validation_tokens: at most this many tokens of each corpus are read in a validation.
        context_length: tokens the model sees at once in training.
        block_tokens: the unit of order; the context length divides it.
        loader_workers: processes that read ahead (0: none).
    """

    source: Literal["bundled", "local"]
    context_length: int
    block_tokens: int = 1024
    files: str | tuple[str, ...] | None = None
    tokenizer: Path | None = None
    shards: Path | None = None
    validation_fraction: float = 0.05
    validation_tokens: int = 2**20
    loader_workers: int = 0

    def __post_init__(self) -> None:
        if self.source == "local" and self.files is None and self.shards is None:
            raise ConfigError(
                "data=local needs text: give data.files=GLOB, or data.shards=DIR that is prepared already"
            )
        if self.source == "bundled" and self.files is not None:
            raise ConfigError("data.files is given but data=bundled reads no files: use data=local")
        if self.block_tokens < 1:
            raise ConfigError(f"data.block_tokens={self.block_tokens} is below 1")
        if self.context_length < 1 or self.block_tokens % self.context_length:
            raise ConfigError(
                f"data.context_length={self.context_length} does not divide data.block_tokens={self.block_tokens}, the "
                "unit of order: choose a divisor, or a larger block"
            )
        if not 0.0 < self.validation_fraction < 1.0:
            raise ConfigError(f"data.validation_fraction={self.validation_fraction} is not between 0 and 1")
        if self.validation_tokens < self.block_tokens:
            raise ConfigError(
                f"data.validation_tokens={self.validation_tokens} is less than a block (data.block_tokens="
                f"{self.block_tokens}): nothing would be validated"
            )
        if self.loader_workers < 0:
            raise ConfigError(f"data.loader_workers={self.loader_workers} is negative")


def ensure_prepared(config: DataConfig, n_vocab: int, console: Console) -> ShardFolder:
    """The shards that a configuration asks for, prepared now if they are not there yet.

    Args:
        n_vocab: the model's vocabulary; a tokenizer is trained to this size or has to have it.
        console: where progress is shown.

    Raises:
        DataError: text, tokenizer or shards are missing, damaged or don't belong together.
    """
    given = Tokenizer.from_file(config.tokenizer) if config.tokenizer else None
    if config.source == "local" and config.files is None:
        assert config.shards is not None  # DataConfig refuses anything else
        folder = ShardFolder(config.shards)
        _check_tokenizer(folder, given, n_vocab)
        return folder
    if given and given.n_vocab != n_vocab:
        raise DataError(_other_size(f"{config.tokenizer} has", given.n_vocab, n_vocab))
    corpora = _corpora(config)
    identity = _identity(corpora, given.fingerprint if given else f"bpe-{n_vocab}", config.validation_fraction)
    path = config.shards or user_cache_path("gptstar") / "shards" / f"{config.source}-{identity[:16]}"
    if not (path / "manifest.json").exists():
        if path.exists() and any(path.iterdir()):
            raise DataError(f"data.shards={path} is not empty and holds no manifest.json: choose another folder")
        prepare(corpora, given, n_vocab, config.validation_fraction, identity, path, console)
    folder = ShardFolder(path)
    _check_tokenizer(folder, given, n_vocab)
    if folder.manifest.identity != identity:
        raise DataError(
            f"data.shards={path} holds shards of other text or with another held-out share than asked for: choose "
            "another folder, or leave data.files out to use it as it is (data=local)"
        )
    return folder


def _corpora(config: DataConfig) -> list[Corpus]:
    if config.source == "bundled":
        return bundled_corpora()
    assert config.files is not None
    return local_corpora([config.files] if isinstance(config.files, str) else config.files)


def _identity(corpora: Sequence[Corpus], tokenizer: str, validation_fraction: float) -> str:
    parts = [str(FORMAT_VERSION), tokenizer, str(validation_fraction)]
    parts += [f"{corpus.name} {corpus.identity}" for corpus in corpora]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_tokenizer(folder: ShardFolder, given: Tokenizer | None, n_vocab: int) -> None:
    if given and given.fingerprint != folder.manifest.tokenizer:
        raise DataError(
            f"data.tokenizer is not the tokenizer that made the shards in {folder.folder}: leave it out to use theirs, "
            "or choose another data.shards to prepare the text again"
        )
    if folder.manifest.n_vocab != n_vocab:
        raise DataError(_other_size(f"the shards in {folder.folder} have", folder.manifest.n_vocab, n_vocab))


def _other_size(what: str, size: int, n_vocab: int) -> str:
    return f"{what} a vocabulary of {size:,} tokens but model.n_vocab={n_vocab}: set model.n_vocab={size}"


def prepare(
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer | None,
    n_vocab: int,
    validation_fraction: float,
    identity: str,
    path: Path,
    console: Console,
) -> None:
    """Write the shards of some corpora; the folder appears complete or not at all.

    Args:
        tokenizer: None to train one of `n_vocab` tokens on the documents that are not held out.
        validation_fraction: a document is held out when the hash of its text falls below this share.
        path: the folder to make; it does not exist or is empty.

    Raises:
        DataError: the text can't be read, is too short, or the folder can't be written.
    """
    work = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if (path / "manifest.json").exists():  # another process was first
                return
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
            work.mkdir()
            try:
                manifest = _write(corpora, tokenizer, n_vocab, validation_fraction, identity, work, console)
                work.rename(path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(f"can't write shards to {path}: {error.strerror or error}") from error
    console.print(f"shards in {path}: {manifest.total('train', 'tokens'):,} tokens to train on", soft_wrap=True)


def _write(
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer | None,
    n_vocab: int,
    validation_fraction: float,
    identity: str,
    folder: Path,
    console: Console,
) -> Manifest:
    held_out = {corpus.name: _held_out_below(corpus, validation_fraction) for corpus in corpora}
    if not any(held_out.values()):
        raise DataError("no corpus has two documents or more, so none can be held out for validation: add text")
    if tokenizer is None:
        console.print(f"training a byte-level BPE of {n_vocab:,} tokens")
        training_text = (text for c in corpora for text in c.documents() if text_hash(text) >= held_out[c.name])
        tokenizer = Tokenizer.train(training_text, n_vocab)
    shards = [shard for c in corpora for shard in _pack(c, tokenizer, held_out[c.name], folder, console)]
    sources = {corpus.name: {"source": corpus.source, "licence": corpus.licence} for corpus in corpora}
    manifest = Manifest(identity, tokenizer.fingerprint, tokenizer.n_vocab, sources, tuple(shards))
    write_manifest(folder, manifest, tokenizer)
    return manifest


def text_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _held_out_below(corpus: Corpus, fraction: float) -> float:
    """The hash below which documents are held out: the fraction, or in a tiny corpus what takes one document."""
    first, second = 1.0, 1.0  # the two smallest hashes
    for text in corpus.documents():
        hashed = text_hash(text)
        if hashed < first:
            first, second = hashed, first
        elif first < hashed < second:
            second = hashed
    if second == 1.0:
        return 0.0  # a single document is trained on
    return fraction if first < fraction else (first + second) / 2


def _pack(corpus: Corpus, tokenizer: Tokenizer, held_out: float, folder: Path, console: Console) -> list[Shard]:
    """Tokenise a corpus into shards, one document after another, end-of-text between."""
    splits: tuple[Split, ...] = ("train", "validation")
    writers = {
        split: ShardWriter(folder, corpus.name, split, tokenizer.n_vocab, tokenizer.end_of_text) for split in splits
    }
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} documents"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"tokenising {corpus.name}", total=None)
        documents = corpus.documents()
        while texts := list(islice(documents, DOCUMENTS_AT_ONCE)):
            for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
                writer = writers["validation" if text_hash(text) < held_out else "train"]
                writer.append(tokens, len(text.encode()))
            progress.advance(task, len(texts))
    for writer in writers.values():
        writer.flush()
    return list(chain.from_iterable(writer.finished for writer in writers.values()))


def shard_table(manifest: Manifest) -> Table:
    """Documents, tokens and text of each corpus and split, for the terminal."""
    table = Table(title="tokens by corpus")
    for column in ("corpus", "split", "documents", "tokens", "bytes of text", "bytes a token"):
        table.add_column(column, justify="left" if column in ("corpus", "split") else "right")
    for corpus, split in dict.fromkeys((shard.corpus, shard.split) for shard in manifest.shards):
        documents, tokens, size = (manifest.total(split, what, corpus) for what in ("documents", "tokens", "bytes"))
        table.add_row(corpus, split, f"{documents:,}", f"{tokens:,}", f"{size:,}", f"{size / tokens:.2f}")
    return table
