"""What goes wrong around a preparation: lost files, other requests, links, odd tokenizers, corpora of copies."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from gptstar.cli import main
from gptstar.data.config import CorpusConfig, DataConfig
from gptstar.data.preparation import packing
from gptstar.data.preparation.encoding import Encoded, EncodingPool
from gptstar.data.preparation.parts import Part, merge
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.manifest import read_manifest, segment_hashes
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.text.corpora import local_corpora
from gptstar.data.text.records import Piece
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.files import file_sha256
from support.text import QUIET, config, documents_of, same, sentences, write_corpus

TEXTS = sentences(90, 40, seed=12)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    (tmp_path / "t.json").write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    return tmp_path / "t.json"


@pytest.fixture
def unfinished(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """A preparation into `s` that was stopped after some documents; call it to go on, with other settings or not."""
    files = write_corpus(tmp_path / "c", TEXTS)

    def prepare(**changes: object) -> ShardFolder:
        asked = {"files": files, "tokenizer": tokenizer, "shards": str(tmp_path / "s"), **changes}
        return ensure_prepared(config(**asked), 300, QUIET)

    monkeypatch.setattr(packing, "COMMIT_SECONDS", 0.0)
    plain, seen = packing.CorpusPacker._take, []

    def stop_after_fifty(self: packing.CorpusPacker, *arguments: object) -> None:
        seen.append(1)
        if len(seen) == 50:
            raise KeyboardInterrupt
        plain(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(packing.CorpusPacker, "_take", stop_after_fifty)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    assert (tmp_path / ".s.partial/train-c-00000.npy").exists()
    return prepare


def test_it_goes_on(unfinished: Callable[..., ShardFolder], tmp_path: Path) -> None:
    unfinished()
    unfinished(shards=str(tmp_path / "in-one-go"))
    assert same(tmp_path / "s", tmp_path / "in-one-go")


@pytest.mark.parametrize("damage", ["shorten", "remove"])
def test_what_was_written_and_is_lost_is_noticed(
    damage: str, unfinished: Callable[..., ShardFolder], tmp_path: Path
) -> None:
    path = tmp_path / ".s.partial/train-c-00000.npy"
    os.truncate(path, 200) if damage == "shorten" else path.unlink()
    with pytest.raises(DataError, match=r"train-c-00000\.npy lacks data .* delete .*\.s\.partial to start again"):
        unfinished()


def test_another_request_does_not_destroy_what_is_done(unfinished: Callable[..., ShardFolder], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.s\.partial holds an unfinished preparation of other text"):
        unfinished(validation_fraction=0.3)
    unfinished()


def test_a_damaged_journal_is_refused(unfinished: Callable[..., ShardFolder], tmp_path: Path) -> None:
    (tmp_path / ".s.partial/journal.sqlite").write_bytes(b"nothing of the kind" * 500)
    with pytest.raises(DataError, match=r"journal\.sqlite is damaged .*: delete .*\.s\.partial"):
        unfinished()


def test_a_full_disk_under_the_journal_is_refused(
    unfinished: Callable[..., ShardFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("gptstar.data.preparation.packing.Journal.commit", commit)
        with pytest.raises(DataError, match="database or disk is full; the finished work is kept"):
            unfinished()
    unfinished()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("truncation", {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}),
        (
            "padding",
            {
                "strategy": {"Fixed": 99},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "x",
            },
        ),
    ],
)
def test_what_a_tokenizer_asks_for_other_ends_is_ignored(key: str, value: object, tokenizer: Path) -> None:
    plain = Tokenizer.from_file(tokenizer)
    odd = Tokenizer(json.dumps(json.loads(plain.json_text) | {key: value}))
    assert odd.encode(TEXTS[:3])[0].tolist() == plain.encode(TEXTS[:3])[0].tolist()
    assert odd.fingerprint == plain.fingerprint


def test_a_tokenizer_that_is_random_is_refused_and_added_tokens_count(tokenizer: Path) -> None:
    tree = json.loads(tokenizer.read_text())
    tree["model"]["dropout"] = 0.3
    with pytest.raises(DataError, match=r"drops merges at random \(dropout=0\.3"):
        Tokenizer(json.dumps(tree))
    tree["model"]["dropout"] = None
    added = dict(tree["added_tokens"][0], id=300, content="bada", special=False)
    tree["added_tokens"].append(added)
    assert Tokenizer(json.dumps(tree)).fingerprint != Tokenizer.from_file(tokenizer).fingerprint


def test_a_tokenizer_that_adds_spaces_is_not_given_pieces(tokenizer: Path, tmp_path: Path) -> None:
    tree = json.loads(tokenizer.read_text())
    tree["pre_tokenizer"]["add_prefix_space"] = True
    spaced = Tokenizer(json.dumps(tree))
    assert not spaced.can_be_cut
    assert Tokenizer.from_file(tokenizer).can_be_cut
    tokenizer.write_text(json.dumps(tree))
    text = "\n".join(sentences(100, 40, seed=3))
    files = write_corpus(tmp_path / "c", [text, *TEXTS[:9]])
    folder = ensure_prepared(config(files=files, tokenizer=tokenizer), 300, QUIET)
    lengths = [len(tokens) + 1 for tokens in spaced.encode([text, *TEXTS[:9]])]
    assert sum(lengths) == sum(folder.manifest.total(split, "tokens") for split in ("train", "validation"))


def test_names_of_corpora_do_not_meet(tmp_path: Path, tokenizer: Path) -> None:
    files = [
        write_corpus(tmp_path / name, sentences(60, 20, seed)) for seed, name in enumerate(("a", "a-rest", "rest"))
    ]
    asked = {"files": tuple(files), "corpora": {name: CorpusConfig(epochs=2.5) for name in ("a", "rest")}}
    folder = ensure_prepared(config(**asked, tokenizer=tokenizer), 300, QUIET)
    for seed, name in enumerate(("a", "a-rest", "rest")):
        found = [documents_of(folder, *each) for each in (("train", name), ("validation", name))]
        found.append(documents_of(folder, "train", name, "rest"))
        assert sorted(sum(found, [])) == sorted(sentences(60, 20, seed))


def test_a_part_that_was_copied_is_no_other(tmp_path: Path, tokenizer: Path) -> None:
    files = write_corpus(tmp_path / "c", TEXTS, files=4)
    asked = config(files=files, tokenizer=tokenizer, shards=str(tmp_path / "s"))
    ensure_prepared(asked, 300, QUIET, Part(1, 2))
    shutil.copytree(tmp_path / "s/part-00001-of-00002", tmp_path / "s/part-00002-of-00002")
    with pytest.raises(DataError, match=r"part-00002-of-00002 and .* are parts of different preparations"):
        merge(tmp_path / "s")


def test_links_do_not_count_twice(tmp_path: Path, tokenizer: Path) -> None:
    write_corpus(tmp_path / "text/c", TEXTS)
    (tmp_path / "text/c/loop").symlink_to(tmp_path / "text")
    folder = ensure_prepared(config(files=f"{tmp_path}/text/**/*.jsonl", tokenizer=tokenizer), 300, QUIET)
    assert folder.manifest.sources["c"].counts == {"documents": 90}
    os.mkfifo(tmp_path / "text/c/pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl is not a regular file"):
        ensure_prepared(config(files=f"{tmp_path}/text/c/*.jsonl", tokenizer=tokenizer), 300, QUIET)


def test_how_often_a_corpus_is_read_may_change_without_new_shards(tmp_path: Path, tokenizer: Path) -> None:
    files = write_corpus(tmp_path / "c", TEXTS)
    asked = {"files": files, "tokenizer": tokenizer, "shards": str(tmp_path / "s")}
    ensure_prepared(config(**asked), 300, QUIET)
    ensure_prepared(config(**asked, corpora={"c": CorpusConfig(epochs=3.0, licence="MIT")}), 300, QUIET)
    source = read_manifest(tmp_path / "s/manifest.json").sources["c"]
    assert (source.epochs, source.licence) == (3.0, "MIT")


def test_a_corpus_of_copies_is_empty_and_not_refused(tmp_path: Path, tokenizer: Path) -> None:
    files = write_corpus(tmp_path / "a", TEXTS), write_corpus(tmp_path / "b", TEXTS[:9])
    folder = ensure_prepared(config(files=files, tokenizer=tokenizer, deduplicate=True), 300, QUIET)
    assert folder.manifest.sources["b"].counts == {"duplicates": 9}
    assert folder.corpora("train") == ["a"]


def test_old_documents_are_left_out_however_many_there_are(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "HOPELESS", 30)
    (tmp_path / "c").mkdir()
    rows = [{"text": text, "date": f"{2000 + number // 3}-01-01"} for number, text in enumerate(TEXTS)]
    (tmp_path / "c/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    since = CorpusConfig(newer_than=date(2019, 12, 31), date_column="date")
    asked = config(files=str(tmp_path / "c/*"), corpora={"c": since}, tokenizer=tokenizer)
    assert ensure_prepared(asked, 300, QUIET).manifest.sources["c"].counts == {
        "not newer than 2019-12-31": 60,
        "documents": 30,
    }


def test_a_wrong_column_is_named_even_in_a_small_corpus(tmp_path: Path) -> None:
    files = write_corpus(tmp_path / "c", TEXTS)
    with pytest.raises(DataError, match=r'corpus c holds no document: 90 no "body" field \(.*line 1\)'):
        ensure_prepared(config(files=files, corpora={"c": CorpusConfig(column="body")}), 300, QUIET)


def test_a_long_document_of_nothing_is_counted_once(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptstar.data.text.records.PIECE_CHARACTERS", 100)
    files = write_corpus(tmp_path / "c", [*TEXTS[:5], "\x00" * 1000, "\x00" * 1000 + "end"])
    folder = ensure_prepared(config(files=files, tokenizer=tokenizer), 300, QUIET)
    counts = folder.manifest.sources["c"].counts
    assert counts == {"documents": 6, "empty once cleaned": 1, "cleaned": 1}
    assert "end" in documents_of(folder, "train", "c") + documents_of(folder, "validation", "c")


def test_rows_that_can_not_be_decoded_cost_no_other(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "c").mkdir()
    binary = pyarrow.array([text.encode() for text in TEXTS[:20]] + [b"\xff\xfe"], pyarrow.binary())
    table = pyarrow.table({"text": binary.view(pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "c/a.parquet")
    folder = ensure_prepared(config(files=str(tmp_path / "c/*"), tokenizer=tokenizer), 300, QUIET)
    assert folder.manifest.sources["c"].counts == {"documents": 20, "can't be decoded": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["shards"][0].update(split="x"), r"shards\.0\.split"),
        (lambda m: m["shards"][0].update(bytes=-1), r"shards\.0\.bytes"),
        (lambda m: m["sources"]["c"].update(epochs="two"), r"sources\.c\.epochs"),
        (lambda m: m["sources"]["c"].update(counts=[1]), r"sources\.c\.counts"),
        (lambda m: m["sources"].pop("c"), "names shards of c but no such source"),
        (lambda m: m.update(options=3), "options"),
        (lambda m: m["shards"][0].update(name="../outside"), r"\.\./outside', which is not a shard's name"),
        (lambda m: m["shards"][0].update(name="/abs/path"), "/abs/path', which is not a shard's name"),
        (lambda m: m["shards"].append(m["shards"][0]), "train-c-00000' more than once"),
        (lambda m: m["shards"][0].update(largest_token=300), "train-c-00000.npy holds the token 300, but"),
        (lambda m: m["shards"][0].update(largest_token=-1), r"shards\.0\.largest_token"),
        (lambda m: m["shards"][0].update(documents=1), "documents.npy holds too many documents"),
    ],
    ids=[
        "split",
        "bytes",
        "epochs",
        "counts",
        "source",
        "options",
        "up",
        "root",
        "twice",
        "token",
        "none",
        "documents",
    ],
)
def test_a_manifest_that_was_edited_is_refused(
    change: Callable[[dict[str, object]], object], says: str, tmp_path: Path, tokenizer: Path
) -> None:
    files = write_corpus(tmp_path / "c", TEXTS)
    ensure_prepared(config(files=files, tokenizer=tokenizer, shards=str(tmp_path / "s")), 300, QUIET)
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    change(manifest)
    (tmp_path / "s/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=says):
        ShardFolder(tmp_path / "s")


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tokens: tokens.astype(np.int64), r"train-c-00000\.npy holds int64 of shape \(\d+,\)"),
        (lambda tokens: tokens.astype(np.float32), r"train-c-00000\.npy holds float32"),
        (lambda tokens: tokens.astype(">u2"), r"train-c-00000\.npy holds >u2"),
        (lambda tokens: tokens.reshape(1, -1), r"train-c-00000\.npy holds uint16 of shape \(1, \d+\)"),
        (lambda tokens: np.where(np.arange(len(tokens)) == 7, 300, tokens).astype("u2"), "the token 300, but"),
    ],
    ids=["int64", "float", "big-endian", "two dimensions", "token"],
)
def test_shards_of_another_program_are_checked(
    change: Callable[[np.ndarray], np.ndarray],
    says: str,
    is_large: bool,
    tmp_path: Path,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, folder = write_corpus(tmp_path / "c", TEXTS), tmp_path / "s"
    ensure_prepared(config(files=files, tokenizer=tokenizer, shards=str(folder)), 300, QUIET)
    tree = json.loads((folder / "manifest.json").read_text())
    shard = tree["shards"][0]
    assert shard["largest_token"] == np.load(folder / "train-c-00000.npy").max()
    np.save(folder / "train-c-00000.npy", change(np.load(folder / "train-c-00000.npy")))
    np.save(folder / "train-c-00000.segments.npy", segment_hashes(folder / "train-c-00000.npy"))
    shard["sha256"] = file_sha256(folder / "train-c-00000.npy")
    shard["segments_sha256"] = file_sha256(folder / "train-c-00000.segments.npy")
    del shard["largest_token"]  # as in a manifest of an earlier version
    (folder / "manifest.json").write_text(json.dumps(tree))
    if is_large:
        monkeypatch.setattr("gptstar.data.storage.shards.VERIFY_BELOW_BYTES", 0)
    if not (is_large and "token" in says):  # the tokens of large shards are read by verify
        with pytest.raises(DataError, match=says):
            ShardFolder(folder)
    with pytest.raises(SystemExit):
        main(["data", "verify", str(folder)])


@pytest.fixture
def large(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, DataConfig]:
    """A file of which samples are hashed, and the configuration that prepares it."""
    monkeypatch.setattr("gptstar.data.text.corpora.STAMPED_BYTES", 64)
    files = write_corpus(tmp_path / "c", [f"secret {text}" for text in TEXTS])
    return tmp_path / "c/000.jsonl", config(files=files, tokenizer=tokenizer, shards=str(tmp_path / "s"))


def mask(path: Path) -> None:
    """Change a word between the samples, and not the length."""
    content = path.read_bytes()
    place = content.index(b"secret", 100)
    path.write_bytes(content[:place] + b"xxxxxx" + content[place + 6 :])


def test_text_that_was_changed_in_place_is_prepared_again(
    large: tuple[Path, DataConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    path, asked = large
    first = ensure_prepared(asked, 300, QUIET)
    identity = local_corpora(str(path))[0].identity
    mask(path)
    assert local_corpora(str(path))[0].identity == identity
    second = ensure_prepared(asked, 300, Console(width=500))
    folder = Path(second.folder)
    assert f"{path} changed after the shards in {folder} were prepared" in capsys.readouterr().out
    assert any("xxxxxx" in text for text in documents_of(second, "train", "c"))
    assert ShardFolder(folder.with_name("s.before-1")).manifest == first.manifest
    assert ensure_prepared(asked, 300, QUIET).manifest == second.manifest


def test_text_that_was_touched_or_copied_is_not(large: tuple[Path, DataConfig]) -> None:
    path, asked = large
    first = ensure_prepared(asked, 300, QUIET)
    os.utime(path, ns=(1, 1))
    again = ensure_prepared(asked, 300, QUIET)
    assert again.manifest.shards == first.manifest.shards
    assert again.manifest.sources["c"].files[0].startswith("1 ")  # so that it is not hashed again
    assert not Path(again.folder).with_name("s.before-1").exists()
    mask(path)
    os.utime(path, ns=(1, 1))
    assert ensure_prepared(asked, 300, QUIET).manifest == again.manifest
    assert ensure_prepared(asked, 300, QUIET, verify=True).manifest.shards != first.manifest.shards


def test_shards_of_an_earlier_version_are_used_and_doubts_are_told(
    large: tuple[Path, DataConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    path, asked = large
    folder = Path(ensure_prepared(asked, 300, QUIET).folder)
    tree = json.loads((folder / "manifest.json").read_text())
    del tree["sources"]["c"]["files"]
    (folder / "manifest.json").write_text(json.dumps(tree))
    console = Console(width=500)
    ensure_prepared(asked, 300, console)
    assert "may have changed" not in capsys.readouterr().out
    os.utime(path, ns=2 * (time.time_ns() + 10**10,))
    ensure_prepared(asked, 300, console)
    assert f"{path} may have changed after the shards in {folder} were prepared" in capsys.readouterr().out


def test_text_that_changes_while_it_is_prepared_is_refused(
    large: tuple[Path, DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = large
    with monkeypatch.context() as patch:
        patch.setattr(packing.CorpusPacker, "pack", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ensure_prepared(asked, 300, QUIET)
    mask(path)
    with pytest.raises(
        DataError, match=r"000\.jsonl changed after the preparation in .*\.s\.partial began: delete that folder"
    ):
        ensure_prepared(asked, 300, QUIET)


def test_verify_is_true_or_false(large: tuple[Path, DataConfig], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "verify=yes"])
    assert "verify=yes is not true or false" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"verify=true .* give data\.files"):
        ensure_prepared(config(shards=large[1].shards), 300, QUIET, verify=True)


def test_a_worker_that_dies_is_one_line_and_loses_nothing(tmp_path: Path, tokenizer: Path) -> None:
    files = write_corpus(tmp_path / "c", TEXTS * 30)
    asked = {"files": files, "tokenizer": tokenizer, "shards": str(tmp_path / "s")}
    plain = EncodingPool._encode

    def dying(self: EncodingPool, batch: list[Piece]) -> list[Encoded]:
        self._process().kill()
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EncodingPool, "_encode", dying)
        with pytest.raises(DataError, match="a worker process died"):
            ensure_prepared(config(**asked, workers=2), 300, QUIET)
    ensure_prepared(config(**asked, workers=2), 300, QUIET)
    assert np.load(tmp_path / "s/train-c-00000.npy").size > 10_000
