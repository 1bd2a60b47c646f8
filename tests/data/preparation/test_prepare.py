"""From documents to shards: prepared once, the same for any number of workers, and through any kill."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.cli import main
from gptstar.data.config import CorpusConfig
from gptstar.data.preparation.holdout import EndHeldOut, held_out_below, is_held_out, number_of
from gptstar.data.preparation.parts import Part, merge
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.text.corpora import local_corpora
from gptstar.data.text.records import document
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from support.text import QUIET, config, documents_of, same, sentences, write_corpus


def digest(text: str) -> bytes:
    return next(iter(document(text, 1))).digest


def test_shards_decode_to_the_documents(text: str, tmp_path: Path) -> None:
    folder = ensure_prepared(config(files=text, shards=str(tmp_path / "shards")), 300, QUIET)
    for corpus in local_corpora(text):
        documents = list(corpus.documents())
        found = {split: documents_of(folder, split, corpus.name) for split in ("train", "validation")}
        assert sorted(found["train"] + found["validation"]) == sorted(documents)
        assert found["validation"] == [each for each in documents if each in set(found["validation"])]
        held_out = max(number_of(digest(each)) for each in found["validation"])
        assert held_out < min(number_of(digest(each)) for each in found["train"])
        n_bytes = sum(folder.manifest.total(split, "bytes", corpus.name) for split in ("train", "validation"))
        assert n_bytes == sum(len(each.encode()) for each in documents)
        assert folder.manifest.sources[corpus.name].counts == {"documents": len(documents)}


@pytest.mark.slow
def test_real_corpora_survive_the_whole_path(shared: Path, tmp_path: Path) -> None:
    """Every document of three corpora, cleaned, in GPT-2's tokens and back; of the books half."""
    import ftfy

    asked = config(
        files=str(shared / "corpora/*/*.zst"),
        corpora={"books": CorpusConfig(epochs=0.5)},
        tokenizer=shared / "tokenizer/gpt2.json",
        shards=str(tmp_path / "s"),
        workers=2,
    )
    folder = ensure_prepared(asked, 50257, QUIET)
    for corpus in local_corpora(str(shared / "corpora/*/*.zst")):
        documents = list(corpus.documents())
        found = documents_of(folder, "train", corpus.name) + documents_of(folder, "validation", corpus.name)
        if corpus.name == "books":
            held_out = set(documents_of(folder, "validation", "books"))
            documents = [
                each for each in documents if ftfy.fix_text(each) in held_out or number_of(digest(each), 1) < 0.5
            ]
            assert 0 < len(documents) < 16
        assert Counter(found) == Counter(ftfy.fix_text(each) for each in documents)


def test_what_is_held_out_does_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    texts = sentences(60, 30, seed=4)
    held_out = []
    for name, part in (("few", texts[:40]), ("many", texts)):
        files = write_corpus(tmp_path / name / "c", part)
        folder = ensure_prepared(config(files=files, validation_fraction=0.2), 300, QUIET)
        held_out.append(documents_of(folder, "validation", "c"))
    assert held_out[0] == [each for each in held_out[1] if each in texts[:40]]


def test_any_number_of_workers_writes_the_same_bytes(text: str, tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        asked = config(files=text, shards=str(tmp_path / f"{workers}"), workers=workers, shard_tokens=2000)
        ensure_prepared(asked, 300, QUIET)
    assert len(list((tmp_path / "1").glob("train-alpha-*.npy"))) > 3
    assert same(tmp_path / "1", tmp_path / "2")
    assert same(tmp_path / "1", tmp_path / "3")


PREPARE = """
import sys
from gptstar.data.preparation import packing
packing.COMMIT_SECONDS = 0.0
from gptstar.cli import main
main(["prepare", *sys.argv[1:]])
"""


def prepare_and_kill(overrides: list[str], folder: Path, kills: int, seed: int) -> int:
    """Kill a preparation at random moments, each after the one before, then let it end; how often it went on."""
    moments = random.Random(seed)
    command = [sys.executable, "-c", PREPARE, *overrides, f"data.shards={folder}"]
    reached = 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and written(folder) <= reached:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        reached = written(folder)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.count("resuming")


def written(folder: Path) -> int:
    """Bytes of tokens in an unfinished preparation."""
    sizes = []
    for path in folder.with_name(f".{folder.name}.partial").glob("*-?????.npy"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


@pytest.mark.slow
def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    files = write_corpus(tmp_path / "c", sentences(2000, 120, seed=3), files=3)
    tokenizer = Tokenizer.train(sentences(50, 100, seed=1), 300)
    (tmp_path / "t.json").write_text(tokenizer.json_text)
    shared = ["data=local", f"data.files={files}", f"data.tokenizer={tmp_path / 't.json'}", "model.n_vocab=300"]
    shared += ["data.shard_tokens=30000", "data.deduplicate=true", "hardware=cpu"]
    main(["prepare", *shared, "data.workers=1", f"data.shards={tmp_path / 'whole'}"])
    went_on = prepare_and_kill([*shared, "data.workers=2"], tmp_path / "killed", 1, seed=7)
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert went_on == 1


@pytest.mark.slow
def test_ten_kills_on_real_text_change_nothing(shared: Path, tmp_path: Path) -> None:
    overrides = [
        "data=local",
        f"data.files={shared}/corpora/*/*.zst",
        f"data.tokenizer={shared}/tokenizer/gpt2.json",
        "model.n_vocab=50257",
        "+data.corpora.books.epochs=0.5",
        "data.shard_tokens=500000",
    ]
    main(["prepare", *overrides, "data.workers=1", f"data.shards={tmp_path / 'whole'}"])
    went_on = prepare_and_kill([*overrides, "data.workers=2"], tmp_path / "killed", 10, seed=11)
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert went_on == 1


def test_parts_are_the_whole(tmp_path: Path) -> None:
    files = [write_corpus(tmp_path / name / name, sentences(60, 50, seed), files=5) for seed, name in enumerate("ab")]
    (tmp_path / "t.json").write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    asked = {"files": tuple(files), "tokenizer": tmp_path / "t.json", "validation_fraction": 0.2}
    whole = ensure_prepared(config(**asked, shards=str(tmp_path / "whole")), 300, QUIET)
    parts = config(**asked, shards=str(tmp_path / "parts"))
    for number in (2, 1, 3):
        assert not (tmp_path / "parts/manifest.json").exists()
        ensure_prepared(parts, 300, QUIET, Part(number, 3))
    merged = ensure_prepared(parts, 300, QUIET)
    for split, corpus in (("train", "a"), ("train", "b"), ("validation", "a"), ("validation", "b")):
        one, other = whole.stream(split, corpus), merged.stream(split, corpus)
        assert one.read(0, len(one)).tolist() == other.read(0, len(other)).tolist()
    assert merged.manifest.sources == whole.manifest.sources
    assert {shard.name.partition("/")[0] for shard in merged.manifest.shards} == {
        f"part-0000{number}-of-00003" for number in (1, 2, 3)
    }


def test_parts_that_do_not_fit_are_refused(text: str, tmp_path: Path) -> None:
    asked = {"files": text, "shards": str(tmp_path / "s")}
    with pytest.raises(ConfigError, match=r"part=1/2 needs data\.tokenizer"):
        ensure_prepared(config(**asked), 300, QUIET, Part(1, 2))
    for words in ("0/3", "4/3", "x", "1/2/3", "3"):
        with pytest.raises(ConfigError, match="is not a part: give part=3/16"):
            Part.parse(words)
    with pytest.raises(DataError, match="holds no part"):
        merge(tmp_path)
    (tmp_path / "t.json").write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    asked["tokenizer"] = tmp_path / "t.json"
    with pytest.raises(ConfigError, match=r"data\.deduplicate needs all of the text, and a part"):
        ensure_prepared(config(**asked, deduplicate=True), 300, QUIET, Part(1, 2))
    ensure_prepared(config(**asked), 300, QUIET, Part(1, 2))
    with pytest.raises(DataError, match="are parts of different preparations"):
        ensure_prepared(config(**asked, validation_fraction=0.3), 300, QUIET, Part(2, 3))


def test_half_an_epoch_is_half_of_the_documents(tmp_path: Path) -> None:
    texts = sentences(400, 20, seed=5)
    files = write_corpus(tmp_path / "c", texts)
    prepared = {}
    for epochs in (0.5, 1.0, 2.5):
        asked = config(files=files, corpora={"c": CorpusConfig(epochs=epochs)}, validation_fraction=0.1)
        folder = ensure_prepared(asked, 300, QUIET)
        prepared[epochs] = {s: documents_of(folder, "train", "c", s) for s in ("first", "rest")}
        assert folder.manifest.sources["c"].epochs == epochs
    half, whole, more = prepared[0.5], prepared[1.0], prepared[2.5]
    assert half["first"] == more["first"]
    assert 130 < len(half["first"]) < 230
    assert half["rest"] == whole["rest"] == []
    assert sorted(more["first"] + more["rest"]) == sorted(whole["first"])


def test_exact_copies_are_left_out_within_and_across_corpora(tmp_path: Path) -> None:
    texts = sentences(40, 20, seed=6)
    files = (
        write_corpus(tmp_path / "a", texts + texts[:7]),
        write_corpus(tmp_path / "b", texts[:9] + sentences(5, 20, 8)),
    )
    kept = ensure_prepared(config(files=files), 300, QUIET)
    assert kept.manifest.sources["a"].counts == {"documents": 47}
    folder = ensure_prepared(config(files=files, deduplicate=True), 300, QUIET)
    assert folder.manifest.sources["a"].counts == {"documents": 40, "duplicates": 7}
    assert folder.manifest.sources["b"].counts == {"documents": 5, "duplicates": 9}
    found = [*documents_of(folder, "train", "a"), *documents_of(folder, "validation", "a")]
    assert sorted(found) == sorted(texts)


def test_end_of_text_on_both_sides(text: str, tmp_path: Path) -> None:
    between = ensure_prepared(config(files=text), 300, QUIET)
    both = ensure_prepared(config(files=text, end_of_text="both"), 300, QUIET)
    for split, corpus in (("train", "alpha"), ("validation", "beta")):
        one, two = (folder.stream(split, corpus) for folder in (between, both))
        end = between.tokenizer.end_of_text
        documents = " ".join(map(str, one.read(0, len(one)))).split(f" {end}")[:-1]
        doubled = f"{end} " + f" {end} {end}".join(documents) + f" {end}"
        assert " ".join(map(str, two.read(0, len(two)))) == doubled


def test_a_limit_stops_each_corpus_after_a_document(text: str) -> None:
    folder = ensure_prepared(config(files=text, max_tokens=1000), 300, QUIET)
    whole = ensure_prepared(config(files=text), 300, QUIET)
    for corpus in ("alpha", "beta"):
        found, documents = folder.stream("train", corpus), documents_of(folder, "train", corpus)
        assert documents == documents_of(whole, "train", corpus)[: len(documents)]
        last = len(folder.tokenizer.encode(documents[-1:])[0]) + 1
        assert 1000 <= len(found) < 1000 + last


def test_cleaning_is_what_ftfy_does(tmp_path: Path) -> None:
    texts = [f"cafÃ© number {number} &amp; “quoted”" for number in range(30)]
    files = write_corpus(tmp_path / "c", texts)
    as_it_is = ensure_prepared(config(files=files, clean="none"), 290, QUIET)
    cleaned = ensure_prepared(config(files=files), 290, QUIET)
    assert 'café number 3 & "quoted"' in documents_of(cleaned, "train", "c") + documents_of(cleaned, "validation", "c")
    assert texts[3] in documents_of(as_it_is, "train", "c") + documents_of(as_it_is, "validation", "c")
    assert cleaned.manifest.sources["c"].counts == {"documents": 30, "cleaned": 30}
    assert cleaned.manifest.options["clean"].startswith("ftfy ")
    assert cleaned.manifest.total("train", "bytes") < as_it_is.manifest.total("train", "bytes")


def test_documents_that_hold_a_benchmark_item_are_left_out(tmp_path: Path) -> None:
    texts = sentences(40, 40, seed=6)
    files = write_corpus(tmp_path / "c", texts)
    item = " ".join(texts[17].upper().split()[5:20])
    (tmp_path / "lambada_openai.jsonl").write_text(json.dumps({"text": item}) + "\n")
    folder = ensure_prepared(config(files=files, exclude=str(tmp_path / "lambada_openai.jsonl")), 300, QUIET)
    assert folder.manifest.sources["c"].counts == {"documents": 39, "overlaps with a benchmark": 1}
    found = documents_of(folder, "train", "c") + documents_of(folder, "validation", "c")
    assert sorted(found) == sorted(texts[:17] + texts[18:])


def test_bad_records_are_counted_and_shown(tmp_path: Path) -> None:
    good = [json.dumps({"text": each}) for each in sentences(30, 20, seed=6)]
    bad = ["{", '{"txt": 1}', '{"text": ""}', '{"text": "\\ud800 half"}', '{"text": "\\u0000\\u0001"}', "{"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.jsonl").write_text("\n".join(good[:20] + bad + good[20:]) + "\n")
    source = ensure_prepared(config(files=str(tmp_path / "c/*")), 290, QUIET).manifest.sources["c"]
    assert source.counts == {
        "documents": 31,
        "not JSON": 2,
        'no "text" field': 1,
        "empty": 1,
        "half characters replaced": 1,
        "empty once cleaned": 1,
    }
    assert source.examples["not JSON"] == [f"{tmp_path}/c/a.jsonl, line 21", f"{tmp_path}/c/a.jsonl, line 26"]


def test_a_corpus_without_a_document_is_refused_with_the_reason(tmp_path: Path) -> None:
    files = write_corpus(tmp_path / "good", sentences(30, 20, seed=6))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jsonl").write_text('{"content": "x"}\n' * 7)
    with pytest.raises(DataError, match=r'corpus bad holds no document: 7 no "text" field \(.*a\.jsonl, line 1\)'):
        ensure_prepared(config(files=(files, str(tmp_path / "bad/*")), shards=str(tmp_path / "s")), 300, QUIET)


def test_a_very_long_document_is_prepared_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptstar.data.text.records.PIECE_CHARACTERS", 5000)
    monkeypatch.setattr("gptstar.data.preparation.encoding.CHUNK_CHARACTERS", 700)
    texts = sentences(20, 60, seed=6)
    long = "\n".join(sentences(300, 40, seed=7))
    files = write_corpus(tmp_path / "c", [*texts, long])
    (tmp_path / "t.json").write_text(Tokenizer.train(texts, 300).json_text)
    in_pieces = ensure_prepared(
        config(files=files, tokenizer=tmp_path / "t.json", shards=str(tmp_path / "1")), 300, QUIET
    )
    monkeypatch.undo()
    ensure_prepared(config(files=files, tokenizer=tmp_path / "t.json", shards=str(tmp_path / "2")), 300, QUIET)
    assert long in documents_of(in_pieces, "train", "c") + documents_of(in_pieces, "validation", "c")
    assert same(tmp_path / "1", tmp_path / "2")


@given(st.lists(st.text(max_size=60), min_size=2, max_size=12), st.integers(1, 60))
@settings(deadline=None, max_examples=25)
def test_whatever_the_text_it_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    files = write_corpus(folder / "c", [*texts, "one more", "and more"])
    (folder / "t.json").write_text(_TOKENIZER.json_text)
    asked = config(files=files, tokenizer=folder / "t.json", clean="none", shard_tokens=size, shards=str(folder / "s"))
    shards = ensure_prepared(asked, 300, QUIET)
    found = documents_of(shards, "train", "c") + documents_of(shards, "validation", "c")
    assert Counter(found) == Counter([each for each in texts if each.strip()] + ["one more", "and more"])


_TOKENIZER = Tokenizer.train(sentences(50, 100, seed=1), 300)


def test_a_single_document_is_cut_in_two(tmp_path: Path) -> None:
    lines = sentences(40, 60, seed=7)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/input.txt").write_text("\n".join(lines))
    folder = ensure_prepared(config(files=str(tmp_path / "c/*"), validation_fraction=0.2), 300, QUIET)
    (trained,), (held_out,) = (documents_of(folder, split, "c") for split in ("train", "validation"))
    assert trained + held_out == "\n".join(lines)
    assert held_out[0].isspace()
    assert 0.2 <= len(held_out) / len("\n".join(lines)) < 0.21


def test_of_small_corpora_one_document_trains_and_one_is_held_out(tmp_path: Path) -> None:
    for seed in range(300):
        files = write_corpus(tmp_path / str(seed), [f"document {seed} {number}" for number in range(1 + seed % 3)])
        (corpus,) = local_corpora(files)
        below = held_out_below(corpus, 0.3)
        held_out = [number_of(digest(text)) < below for text in corpus.documents()]
        assert any(held_out) == (len(held_out) > 1)
        assert not all(held_out)


def test_copies_of_a_single_document_are_named(tmp_path: Path) -> None:
    (text,) = sentences(1, 900, seed=7)
    asked = {"files": write_corpus(tmp_path / "c", 60 * [text]), "shards": str(tmp_path / "s")}
    with pytest.raises(DataError, match=r"corpus c: its 60 documents are all copies of one.*data\.deduplicate=true"):
        ensure_prepared(config(**asked), 300, QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.lock", "c"]
    folder = ensure_prepared(config(**asked, deduplicate=True), 300, QUIET)
    (trained,), (held_out,) = (documents_of(folder, split, "c") for split in ("train", "validation"))
    assert trained + held_out == text
    files = write_corpus(tmp_path / "tiny", ["x"])
    with pytest.raises(DataError, match="corpus tiny has only 1 characters, too few to hold some out"):
        ensure_prepared(config(files=files), 300, QUIET)


@pytest.mark.parametrize("characters", [1, 7, 999, 1000, 1001, 2345])
def test_a_long_document_is_cut_where_its_pieces_meet_too(
    characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptstar.data.text.records.PIECE_CHARACTERS", 500)
    text = "".join(random.Random(1).choice("ab é") for _ in range(2400))
    write_corpus(tmp_path / "c", ["", text])
    (unit,) = local_corpora(str(tmp_path / "c/*"))[0].units
    records = list(EndHeldOut(unit.name, unit.size, unit, characters).read())
    halves = [[each for each in records if each.record == number] for number in (3, 4)]
    for half, held_out in zip(halves, (False, True), strict=True):
        assert [each.first for each in half] == [True] + [False] * (len(half) - 1)
        assert [each.last for each in half] == [False] * (len(half) - 1) + [True]
        assert {is_held_out(each, 0.01) for each in half} == {held_out}
    joined = ["".join(each.text for each in half) for half in halves]
    assert joined[0] + joined[1] == text
    assert characters - 100 <= len(joined[0]) <= characters
    assert list(EndHeldOut(unit.name, unit.size, unit, characters).read(3)) == halves[1]


def test_preparing_twice_prepares_once(text: str, tmp_path: Path) -> None:
    asked = config(files=text, shards=str(tmp_path / "shards"))
    first = ensure_prepared(asked, 300, QUIET)
    written = (tmp_path / "shards/manifest.json").stat().st_mtime_ns
    assert ensure_prepared(asked, 300, QUIET).manifest == first.manifest
    assert (tmp_path / "shards/manifest.json").stat().st_mtime_ns == written
    as_they_are = config(shards=str(tmp_path / "shards"))
    assert ensure_prepared(as_they_are, 300, QUIET).manifest.fingerprint == first.manifest.fingerprint


def test_two_at_once_prepare_once(text: str, tmp_path: Path) -> None:
    found: list[str] = []
    asked = config(files=text, shards=str(tmp_path / "shards"))
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
    ensure_prepared(config(files=text, shards=str(tmp_path / "shards")), 300, QUIET)
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
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest\.json is not a manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), r"not a folder of shards"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: No such file"),
    ],
)
def test_damaged_shards_are_refused_by_name(damage: Callable[[Path], object], says: str, shards: Path) -> None:
    damage(shards)
    with pytest.raises(DataError, match=says):
        ShardFolder(shards)


def test_large_shards_are_checked_by_length(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptstar.data.storage.shards.VERIFY_BELOW_BYTES", 0)
    path = shards / "train-alpha-00000.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=r"train-alpha-00000\.npy holds too few tokens"):
        ShardFolder(shards)


def test_what_does_not_belong_together_is_refused(text: str, shards: Path, tmp_path: Path) -> None:
    other = Tokenizer.train(sentences(20, 100, seed=9), 300)
    (tmp_path / "other.json").write_text(other.json_text)
    with pytest.raises(DataError, match="not the tokenizer that made the shards"):
        ensure_prepared(config(files=text, shards=str(shards), tokenizer=tmp_path / "other.json"), 300, QUIET)
    with pytest.raises(DataError, match=r"300 tokens but model\.n_vocab=299: set model\.n_vocab=300"):
        ensure_prepared(config(files=text, tokenizer=tmp_path / "other.json"), 299, QUIET)
    with pytest.raises(DataError, match=r"set model\.n_vocab=300"):
        ensure_prepared(config(shards=str(shards)), 299, QUIET)
    assert ensure_prepared(config(shards=str(shards)), 320, QUIET).manifest.n_vocab == 300  # a padded model's
    with pytest.raises(DataError, match="shards of other text"):
        ensure_prepared(config(files=text, shards=str(shards), validation_fraction=0.3), 300, QUIET)
    (shards / "tokenizer.json").write_text(other.json_text)
    with pytest.raises(DataError, match="not the tokenizer that made these shards"):
        ShardFolder(shards)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": None}, "give data.files=GLOB"),
        ({"source": "bundled"}, "data.source=bundled does not read it"),
        ({"context_length": 48}, "does not divide data.block_tokens=64"),
        ({"validation_fraction": 0.0}, "validation_fraction=0.0 is not above 0"),
        ({"validation_tokens": 1}, "less than one block"),
        ({"loader_workers": -1}, "is not 0 or above"),
    ],
)
def test_impossible_data_settings_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(**{"files": "x", **changes})
