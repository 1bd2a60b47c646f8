"""Prepare text once: reuse existing shards, or clean, tokenise, hold out, pack, and write the manifest."""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console

from gptstar.data.config import CorpusConfig, DataConfig
from gptstar.data.inspection.benchmark_items import Benchmark
from gptstar.data.inspection.grams import GramIndex
from gptstar.data.preparation.changes import changed_files, file_stamps, look_again
from gptstar.data.preparation.encoding import Encoder, EncodingPool
from gptstar.data.preparation.holdout import held_out_below, is_held_out, with_end_held_out
from gptstar.data.preparation.packing import CorpusPacker, CorpusState, Journal
from gptstar.data.preparation.parts import Part, Request, merge
from gptstar.data.preparation.progress import PackingProgress
from gptstar.data.preparation.writer import ShardLayout
from gptstar.data.storage.manifest import Manifest, Source, write_manifest
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.text.clean import clean
from gptstar.data.text.corpora import Corpus, bundled_corpora, local_corpora, named_corpus, total_size
from gptstar.data.text.records import Piece
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.files import partial_path

JOURNAL = "journal.sqlite"
WORTH_PROCESSES_BYTES = 2**23
TOKENIZER_CHARACTERS = 2**30
"""Most characters of text on which a tokenizer is trained."""


def ensure_prepared(
    config: DataConfig, n_vocab: int, console: Console, part: Part | None = None, *, verify: bool = False
) -> ShardFolder:
    """Open the shards of a configuration; prepare them first if they don't exist.

    Args:
        n_vocab: the model's vocabulary; a new tokenizer gets this size, a given one may have at most as many tokens.
        part: prepare and open only this part.
        verify: hash large files completely to detect changes, even if their modification time is the same.

    Raises:
        DataError: text, tokenizer or shards are missing, damaged or don't belong together.
    """
    given = Tokenizer.from_file(config.tokenizer) if config.tokenizer else config.own_tokenizer
    if config.source == "local" and config.files is None and not any(map(_has_source, config.corpora.values())):
        assert config.shards is not None  # DataConfig refuses all other cases
        if verify:
            raise ConfigError("verify=true hashes the text of the shards: give data.files, too")
        folder = ShardFolder(config.shards, config.cache_bytes)
        _check_tokenizer(folder, given, n_vocab)
        return folder
    if given and given.n_vocab > n_vocab:
        raise DataError(_other_size(f"{config.tokenizer or 'the tokenizer of the text'} has", given.n_vocab, n_vocab))
    if config.shards and "://" in config.shards:
        raise DataError(
            f"data.shards={config.shards} is a remote address, and shards are written to local folders only: give a "
            "local folder, copy it to the address, and read it with data=local without data.files"
        )
    request = Request(config, tuple(_corpora(config)), given, n_vocab, part)
    if part:
        _check_part(request, f"part={part.number}/{part.of}")
    name = f"{config.source}-{request.whole[:16]}"
    whole = Path(config.shards).absolute() if config.shards else user_cache_path("gptstar") / "shards" / name
    path = whole / part.folder if part else whole
    if (path / "manifest.json").exists():
        look_again(request, path, console, verify=verify)
    if not (path / "manifest.json").exists():
        if path.exists() and any(path.iterdir()):
            raise DataError(f"data.shards={path} is not empty and holds no manifest.json: choose another folder")
        prepare(request, path, console)
    if part and (merged := merge(whole)):
        console.print(f"all {part.of} parts are there: {whole} holds {merged.total('train', 'tokens'):,} tokens")
    folder = ShardFolder(path)
    _check_tokenizer(folder, given, n_vocab)
    if folder.manifest.identity != request.identity:
        raise DataError(
            f"data.shards={path} holds shards of other text, or with other options: choose another folder, or drop "
            "data.files to use these shards (data=local)"
        )
    return _with_todays_mixture(folder, request)


def _with_todays_mixture(folder: ShardFolder, request: Request) -> ShardFolder:
    """Update the mixture in the manifest, which doesn't change the shards."""
    manifest = folder.manifest
    configs = {corpus.name: corpus.config for corpus in request.corpora}
    sources = {
        name: replace(source, epochs=configs[name].epochs, weight=configs[name].weight, licence=configs[name].licence)
        for name, source in manifest.sources.items()
    }
    if sources == manifest.sources:
        return folder
    write_manifest(Path(folder.folder), replace(manifest, sources=sources), folder.tokenizer)
    return ShardFolder(folder.folder)


def _has_source(corpus: CorpusConfig) -> bool:
    return corpus.source is not None or corpus.files is not None or corpus.hub is not None


def _corpora(config: DataConfig) -> list[Corpus]:
    if config.source == "bundled":
        return bundled_corpora()
    named = {
        name: corpus for name, corpus in config.corpora.items() if config.source == "corpora" or _has_source(corpus)
    }
    corpora = []
    if config.files is not None:
        corpora = local_corpora(config.files, {n: c for n, c in config.corpora.items() if n not in named})
    if both := [corpus.name for corpus in corpora if corpus.name in named]:
        raise DataError(f"corpus {both[0]} is given by data.files and by data.corpora.{both[0]}: drop one of them")
    return corpora + [named_corpus(name, corpus) for name, corpus in named.items()]


def _check_part(request: Request, part: str) -> None:
    config = request.config
    for key, value in (("data.tokenizer", config.tokenizer), ("data.shards", config.shards)):
        if value is None:
            raise ConfigError(f"{part} needs {key}, the same for every part: give it")
    limits = [config.max_tokens, *(corpus.config.max_tokens for corpus in request.corpora)]
    for key, is_set in (("data.deduplicate", config.deduplicate), ("max_tokens", any(limits))):
        if is_set:
            raise ConfigError(f"{key} needs all of the text, and a part sees only its own: prepare without part=")


def _check_tokenizer(folder: ShardFolder, given: Tokenizer | None, n_vocab: int) -> None:
    if given and given.fingerprint != folder.manifest.tokenizer:
        raise DataError(
            f"data.tokenizer is not the tokenizer that made the shards in {folder.folder}: drop data.tokenizer to use "
            "theirs, or choose another data.shards to prepare the text again"
        )
    if folder.manifest.n_vocab > n_vocab:
        raise DataError(_other_size(f"the shards in {folder.folder} have", folder.manifest.n_vocab, n_vocab))


def _other_size(what: str, size: int, n_vocab: int) -> str:
    return f"{what} a vocabulary of {size:,} tokens but model.n_vocab={n_vocab}: set model.n_vocab={size}"


def prepare(request: Request, path: Path, console: Console) -> None:
    """Write the shards of a request into a new folder, which appears complete or not at all.

    Partial work lies in `.NAME.partial` next to it, and the next call resumes from there.

    Raises:
        DataError: the text can't be read, is too short, or the folder can't be written.
    """
    work = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if (path / "manifest.json").exists():  # another process finished first
                return
            work.mkdir(exist_ok=True)
            with closing(Journal(work / JOURNAL, request.identity)) as journal:
                if journal.state is None:
                    for leftover in work.iterdir():  # left by a process that was killed before its first commit
                        if not leftover.name.startswith(JOURNAL):
                            leftover.unlink()
                try:
                    manifest = _write(request, work, journal, console)
                except BaseException:
                    if journal.state is None:
                        shutil.rmtree(work, ignore_errors=True)
                    raise
            for name in (JOURNAL, f"{JOURNAL}-journal"):
                (work / name).unlink(missing_ok=True)
            work.rename(path)
    except sqlite3.OperationalError as error:
        raise DataError(
            f"can't write {work / JOURNAL}: {error}; the finished work is kept, and the same command continues"
        ) from error
    except sqlite3.DatabaseError as error:
        raise DataError(f"{work / JOURNAL} is damaged ({error}): delete {work} to start again") from error
    except OSError as error:
        where = error.filename or path
        raise DataError(
            f"can't write shards: {where}: {error.strerror or error}; the finished work is kept, and the same command "
            "continues"
        ) from error
    console.print(f"shards in {path}: {manifest.total('train', 'tokens'):,} tokens to train on", soft_wrap=True)


def _write(request: Request, folder: Path, journal: Journal, console: Console) -> Manifest:
    config = request.config
    held_out = {corpus.name: held_out_below(corpus, config.validation_fraction) for corpus in request.corpora}
    lone = [corpus.name for corpus in request.corpora if not held_out[corpus.name]]
    where = "used for training completely; nothing of it is held out"
    if len(lone) == len(held_out):
        split = [with_end_held_out(corpus, config) for corpus in request.corpora]
        request, held_out = replace(request, corpora=tuple(split)), dict.fromkeys(lone, config.validation_fraction)
        where = f"cut in two, and its last {config.validation_fraction:.3g} is held out"
    for name in lone:
        console.print(f"corpus {name} is a single document: it is {where}", soft_wrap=True)
    corpora = request.mine
    before = (journal.state or {}).get("files", {})
    files = {corpus.name: file_stamps(corpus, before.get(corpus.name, ())) for corpus in corpora}
    for corpus in corpora if before else ():
        if changed := changed_files(corpus, before[corpus.name], files[corpus.name]):
            raise DataError(
                f"{changed[0]} changed after the preparation in {folder} began: delete that folder to start again"
            )
    if journal.state is None:
        tokenizer = request.tokenizer or _train_tokenizer(request, folder, held_out, console)
        states = [CorpusState() for _ in corpora]
    else:
        tokenizer = request.tokenizer or Tokenizer.from_file(folder / "tokenizer.json")
        states = [CorpusState(**state) for state in journal.state["corpora"]]
        done = sum(state.counts.get("documents", 0) for state in states)
        console.print(f"resuming {folder} after {done:,} documents", soft_wrap=True)
    journal.state = {"corpora": states, "files": files}
    journal.commit()
    exclude = GramIndex([Benchmark.from_file(path) for path in request.exclude]) if request.exclude else None
    both = config.end_of_text == "both"
    layout = ShardLayout(folder, tokenizer.n_vocab, tokenizer.end_of_text, config.shard_tokens, both)
    encoder = Encoder(tokenizer.json_text, config.clean == "ftfy", exclude)
    with EncodingPool(encoder, _workers(config, corpora)) as pool, PackingProgress(console, corpora) as progress:
        for corpus, state in zip(corpora, states, strict=True):
            progress.begin_corpus(corpus)
            if not state.done:
                CorpusPacker(corpus, config, layout, held_out[corpus.name], state, journal).pack(pool, progress.count)
            if request.part is None:
                state.refuse_if_all_are_broken(corpus.name)
            progress.end_corpus(corpus, state)
    sources = {}
    for corpus, state in zip(corpora, states, strict=True):
        licence, epochs, weight = corpus.config.licence, corpus.config.epochs, corpus.config.weight
        sources[corpus.name] = Source(
            corpus.source, licence, epochs, weight, state.counts, state.examples, files[corpus.name]
        )
    shards = tuple(shard for state in states for shard in state.shards)
    described = tokenizer.fingerprint, tokenizer.n_vocab, sources, shards, request.options
    manifest = Manifest(request.identity, request.whole, *described)
    write_manifest(folder, manifest, tokenizer)
    return manifest


def _workers(config: DataConfig, corpora: Sequence[Corpus]) -> int:
    if config.workers is not None:
        return config.workers
    size = total_size(corpora)
    if size is not None and size < WORTH_PROCESSES_BYTES:
        return 1
    return usable_cores()


def usable_cores() -> int:
    """Count the cores that this process may use; a scheduler may allow only some of the machine's cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train_tokenizer(request: Request, folder: Path, held_out: dict[str, float], console: Console) -> Tokenizer:
    """Train a tokenizer on the documents that are not held out, and save it for a process that resumes."""
    console.print(f"training a byte-level BPE of {request.n_vocab:,} tokens")

    def texts() -> Iterator[str]:
        left = TOKENIZER_CHARACTERS
        for corpus in request.corpora:
            for piece in (record for unit in corpus.units for record in unit.read()):
                if isinstance(piece, Piece) and not is_held_out(piece, held_out[corpus.name]):
                    yield clean(piece.text, piece.plain) if request.config.clean == "ftfy" else piece.text
                    left -= len(piece.text)
                    if left < 0:
                        return

    tokenizer = Tokenizer.train(texts(), request.n_vocab)
    (folder / "tokenizer.json").write_text(tokenizer.json_text, encoding="utf-8")
    return tokenizer
