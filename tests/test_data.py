"""Text to shards and back: corpora, prepare, shards."""

import gzip
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import sentences
from rich.console import Console

from gptstar.data.corpora import bundled_corpora, local_corpora
from gptstar.data.prepare import DataConfig, ensure_prepared, text_hash
from gptstar.data.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError

QUIET = Console(quiet=True)


def config(**changes: object) -> DataConfig:
    return DataConfig(**{"source": "local", "context_length": 32, "block_tokens": 64, **changes})


def documents_of(folder: ShardFolder, split: str, corpus: str) -> list[str]:
    shards = [shard for shard in folder.manifest.shards if (shard.split, shard.corpus) == (split, corpus)]
    texts = []
    for shard in shards:
        tokens = np.load(folder.folder / f"{shard.name}.npy")
        starts = np.load(folder.folder / f"{shard.name}.documents.npy").tolist()
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            assert tokens[stop - 1] == folder.tokenizer.end_of_text
            texts.append(folder.tokenizer.decode(tokens[start : stop - 1]))
    return texts


def test_shards_decode_to_the_documents(text: str, tmp_path: Path) -> None:
    folder = ensure_prepared(config(files=text, shards=tmp_path / "shards"), 300, QUIET)
    for corpus in local_corpora([text]):
        documents = list(corpus.documents())
        found = {split: documents_of(folder, split, corpus.name) for split in ("train", "validation")}
        assert sorted(found["train"] + found["validation"]) == sorted(documents)
        assert found["validation"] == [each for each in documents if each in set(found["validation"])]
        held_out = max(map(text_hash, found["validation"]))
        assert held_out < min(map(text_hash, found["train"]))
        n_bytes = sum(folder.manifest.total(split, "bytes", corpus.name) for split in found)
        assert n_bytes == sum(len(each.encode()) for each in documents)


def test_real_corpora_survive_gpt2s_tokens(shared: Path, tmp_path: Path) -> None:
    pattern = str(shared / "corpora/philpapers/*.zst")
    gpt2 = shared / "tokenizer/gpt2.json"
    folder = ensure_prepared(config(files=pattern, tokenizer=gpt2, shards=tmp_path / "s"), 50257, QUIET)
    documents = list(local_corpora([pattern])[0].documents())
    found = documents_of(folder, "train", "philpapers") + documents_of(folder, "validation", "philpapers")
    assert sorted(found) == sorted(documents)
    assert len(found) == 2


def test_what_is_held_out_does_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    texts = sentences(60, 30, seed=4)
    held_out = []
    for name, part in (("few", texts[:40]), ("many", texts)):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "c/x.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in part))
        files = str(tmp_path / name / "c/*.jsonl")
        folder = ensure_prepared(config(files=files, validation_fraction=0.2), 300, QUIET)
        held_out.append(documents_of(folder, "validation", "c"))
    assert held_out[0] == [each for each in held_out[1] if each in texts[:40]]


def test_every_form_reads_the_same(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": each, "meta": {}}) + "\n" for each in ("one", "two é")).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = [zstandard.compress(part) for part in (lines[:10], lines[10:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "d.txt.zst").write_bytes(zstandard.compress(b"three"))
    texts = list(local_corpora([str(tmp_path / "*")])[0].documents())
    assert texts == ["one", "two é"] * 3 + ["three"]


def test_half_characters_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert list(local_corpora([str(tmp_path / "*")])[0].documents()) == ["a\ufffdb \U0001f600"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"txt": 1}\n', r"a\.jsonl, line 2: not a JSON object with a \"text\" field"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1: \"text\" is a int"),
        ("a.jsonl", b"{\n", r"a\.jsonl, line 1"),
        ("a.jsonl.zst", b"nothing", r"a\.jsonl\.zst: can't be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 100, mtime=0)[:30], r"a\.jsonl\.gz: can't be read"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        ("a.jsonl", b'{"text": ' + b"[" * 200_000, r"a\.jsonl, line 1: not a JSON object"),
        ("a.pdf", b"", r"a\.pdf: unknown form"),
    ],
    ids=["field", "type", "cut-line", "no-zst", "cut-gz", "bytes", "nested", "form"],
)
def test_damaged_text_is_refused_by_name(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(local_corpora([str(tmp_path / "*")])[0].documents())


def test_a_truncated_zst_is_refused(tmp_path: Path) -> None:
    whole = zstandard.compress(b"".join(json.dumps({"text": str(n)}).encode() + b"\n" for n in range(20_000)))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst"):
        list(local_corpora([str(tmp_path / "*")])[0].documents())


def test_a_pattern_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches no file"):
        local_corpora([str(tmp_path / "*.jsonl")])


def test_a_single_document_can_not_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the only one")
    with pytest.raises(DataError, match="none can be held out"):
        ensure_prepared(config(files=str(tmp_path / "a.txt"), shards=tmp_path / "s"), 300, QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.lock", "a.txt"]


def test_the_bundled_corpus_is_a_few_megabytes_of_english() -> None:
    documents = [text for corpus in bundled_corpora() for text in corpus.documents()]
    assert sum(map(len, documents)) > 1e6
    assert any("Assignment statements are used to (re)bind names to values" in text for text in documents)


def test_preparing_twice_prepares_once(text: str, tmp_path: Path) -> None:
    asked = config(files=text, shards=tmp_path / "shards")
    first = ensure_prepared(asked, 300, QUIET)
    written = (tmp_path / "shards/manifest.json").stat().st_mtime_ns
    assert ensure_prepared(asked, 300, QUIET).manifest == first.manifest
    assert (tmp_path / "shards/manifest.json").stat().st_mtime_ns == written
    as_they_are = config(shards=tmp_path / "shards")
    assert ensure_prepared(as_they_are, 300, QUIET).manifest.fingerprint == first.manifest.fingerprint


def test_two_at_once_prepare_once(text: str, tmp_path: Path) -> None:
    found: list[str] = []
    asked = config(files=text, shards=tmp_path / "shards")
    threads = [
        threading.Thread(target=lambda: found.append(ensure_prepared(asked, 300, QUIET).manifest.fingerprint))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.fixture
def shards(text: str, tmp_path: Path) -> Path:
    ensure_prepared(config(files=text, shards=tmp_path / "shards"), 300, QUIET)
    return tmp_path / "shards"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: flip(folder / "train-alpha-00000.npy"), r"train-alpha-00000\.npy is damaged"),
        (lambda folder: flip(folder / "train-beta-00000.documents.npy"), r"documents\.npy is damaged"),
        (lambda folder: (folder / "train-alpha-00000.npy").unlink(), r"train-alpha-00000\.npy is missing"),
        (lambda folder: (folder / "train-alpha-00000.npy").write_bytes(b"x"), r"train-alpha-00000\.npy is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest\.json is no manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), r"not a folder of shards"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: No such file"),
    ],
)
def test_damaged_shards_are_refused_by_name(damage: Callable[[Path], object], says: str, shards: Path) -> None:
    damage(shards)
    with pytest.raises(DataError, match=says):
        ShardFolder(shards)


def test_large_shards_are_checked_by_length(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptstar.data.shards.VERIFY_BELOW_BYTES", 0)
    path = shards / "train-alpha-00000.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=r"train-alpha-00000\.npy holds too few tokens"):
        ShardFolder(shards)


def test_what_does_not_belong_together_is_refused(text: str, shards: Path, tmp_path: Path) -> None:
    other = Tokenizer.train(sentences(20, 100, seed=9), 300)
    (tmp_path / "other.json").write_text(other.json_text)
    with pytest.raises(DataError, match="not the tokenizer that made the shards"):
        ensure_prepared(config(files=text, shards=shards, tokenizer=tmp_path / "other.json"), 300, QUIET)
    with pytest.raises(DataError, match=r"300 tokens but model\.n_vocab=301: set model\.n_vocab=300"):
        ensure_prepared(config(files=text, tokenizer=tmp_path / "other.json"), 301, QUIET)
    with pytest.raises(DataError, match=r"set model\.n_vocab=300"):
        ensure_prepared(config(shards=shards), 500, QUIET)
    with pytest.raises(DataError, match="shards of other text"):
        ensure_prepared(config(files=text, shards=shards, validation_fraction=0.3), 300, QUIET)
    (shards / "tokenizer.json").write_text(other.json_text)
    with pytest.raises(DataError, match="not the tokenizer that made these shards"):
        ShardFolder(shards)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": None}, "give data.files=GLOB"),
        ({"source": "bundled"}, "data=bundled reads no files"),
        ({"context_length": 48}, "does not divide data.block_tokens=64"),
        ({"validation_fraction": 0.0}, "validation_fraction=0.0 is not between"),
        ({"validation_tokens": 1}, "less than a block"),
        ({"loader_workers": -1}, "negative"),
    ],
)
def test_impossible_data_settings_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(**{"files": "x", **changes})
