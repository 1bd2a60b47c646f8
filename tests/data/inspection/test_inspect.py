import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gptstar.data.inspection.benchmark_items import Benchmark
from gptstar.data.inspection.inspect import inspect, mixture_shares, printable, sampled, shard_table
from gptstar.data.inspection.overlap import overlap_of_shards
from gptstar.data.inspection.pictures import outline
from gptstar.data.preparation.writer import ShardLayout, ShardWriter
from gptstar.data.storage.documents import Lengths, bounds, document_beginning, documents
from gptstar.data.storage.manifest import Manifest, Shard, Source, write_manifest
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.files import file_sha256

WORDS = re.findall("[a-z]+", "the quick brown fox jumps over a lazy dog and runs far away from there")
NASTY = "escape \x1b[31mred\x07 and [bold]markup[/bold] :smile: \u202eright to left"
SHARD_TOKENS = 97


def text_of(n_words: int) -> str:
    return " ".join(WORDS[n % len(WORDS)] for n in range(n_words))


TEXTS = {
    ("train", "books", "first"): [text_of(n) for n in (3, 41, 97, 5)],
    ("train", "books", "rest"): [text_of(n) for n in (11, 2, 29)],
    ("train", "web", "first"): [NASTY, text_of(7)],
    ("validation", "books", "first"): [text_of(13)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    path = tmp_path_factory.mktemp("shards")
    tokenizer = Tokenizer.train([text_of(200)], 290)
    shards: list[Shard] = []
    for (split, corpus, stratum), texts in TEXTS.items():
        layout = ShardLayout(path, tokenizer.n_vocab, tokenizer.end_of_text, SHARD_TOKENS)
        writer = ShardWriter(layout, corpus, split, stratum)
        for text in texts:
            writer.extend(tokenizer.encode([text])[0], len(text.encode()))
            writer.end_document()
        writer.finish()
        shards += writer.finished
    counts = {"documents": 8, "cleaned": 3, "not JSON": 2}
    sources = {
        "books": Source("/data/books", "public domain", 1.5, None, counts, {"not JSON": ["b.jsonl, line 17"]}),
        "web": Source("/data/web [draft]", "not stated", 2.0, None, {"documents": 2}),
    }
    manifest = Manifest(
        identity="a",
        whole="a",
        tokenizer=tokenizer.fingerprint,
        n_vocab=tokenizer.n_vocab,
        sources=sources,
        shards=tuple(shards),
        options={"clean": "ftfy 6.3.1", "end of text": "between"},
    )
    write_manifest(path, manifest, tokenizer)
    return ShardFolder(path)


def train_texts(corpus: str) -> list[str]:
    return TEXTS["train", corpus, "first"] + TEXTS.get(("train", corpus, "rest"), [])


def shown(folder: ShardFolder, samples: int, picture: Path | None = None, seed: int = 0, width: int = 150) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    inspect(folder, console, samples, picture, seed)
    return console.file.getvalue()


def cells(shown: str, *beginning: str) -> list[str]:
    rows = [re.split(r" *│ *|  +", line.strip(" │")) for line in shown.splitlines()]
    (found,) = [row for row in rows if tuple(row[: len(beginning)]) == beginning]
    return found


def test_the_shards_of_this_test_are_several(folder: ShardFolder) -> None:
    assert Counter((s.corpus, s.split, s.stratum) for s in folder.manifest.shards)["books", "train", "first"] == 2


def test_documents_come_back_as_they_were_written(folder: ShardFolder) -> None:
    for corpus in ("books", "web"):
        assert list(documents(folder, "train", corpus)) == train_texts(corpus)
    for number, text in enumerate(train_texts("books")):
        n_tokens = len(folder.tokenizer.encode([text])[0]) + 1
        assert document_beginning(folder, "train", "books", number, 10**6) == (text, n_tokens)
        beginning, _ = document_beginning(folder, "train", "books", number, 1)
        assert text.startswith(beginning)
        assert len(beginning) < len(text)
    with pytest.raises(IndexError):
        document_beginning(folder, "train", "books", 7, 1)


def test_lengths_are_those_of_the_documents(folder: ShardFolder) -> None:
    sizes = [len(tokens) + 1 for tokens in folder.tokenizer.encode(train_texts("books"))]
    lengths = Lengths.of(folder, "train", "books")
    assert np.repeat(lengths.values, lengths.counts).tolist() == sorted(sizes)
    row = cells(shown(folder, 0), "books", f"{min(sizes)}")
    assert (row[1], row[3], row[5]) == (f"{min(sizes)}", f"{sorted(sizes)[3]}", f"{max(sizes)}")


def test_the_tables_add_up(folder: ShardFolder) -> None:
    out = shown(folder, 0)
    manifest = folder.manifest
    for corpus, times in (("books", "1.5 ×"), ("web", "2 ×")):
        size = sum(len(text.encode()) for text in train_texts(corpus))
        tokens = sum(len(each) + 1 for each in folder.tokenizer.encode(train_texts(corpus)))
        share = f"{mixture_shares(manifest)[corpus]:.1%}"
        amounts = [f"{len(train_texts(corpus))}", f"{tokens:,}", f"{size / tokens:.2f}"]
        assert cells(out, corpus, "train") == [corpus, "train", *amounts, f"{share} ({times})"]
    assert cells(out, "books", "validation")[2] == "1"
    assert cells(out, "books", "not JSON") == ["books", "not JSON", "2", "b.jsonl, line 17"]
    assert cells(out, "web", "documents")[2] == "2"
    assert cells(out, "web", "/data/web [draft] (licence: not stated)")
    assert cells(out, "clean") == ["clean", "ftfy 6.3.1"]
    assert cells(out, "fingerprint") == ["fingerprint", manifest.fingerprint]


def test_figures_are_whole_in_a_narrow_terminal(folder: ShardFolder) -> None:
    console = Console(width=80, file=io.StringIO())
    large = tuple(replace(s, tokens=123_456_789_012, bytes=567_890_123_456) for s in folder.manifest.shards)
    console.print(shard_table(replace(folder.manifest, shards=large)))
    assert "…" not in console.file.getvalue()


def test_the_mixture_counts_epochs_and_weights(folder: ShardFolder) -> None:
    manifest = folder.manifest
    tokens = {key: sum(len(each) + 1 for each in folder.tokenizer.encode(texts)) for key, texts in TEXTS.items()}
    books = 2 * tokens["train", "books", "first"] + tokens["train", "books", "rest"]
    web = 2 * tokens["train", "web", "first"]
    assert mixture_shares(manifest) == {"books": books / (books + web), "web": web / (books + web)}
    weights = {"books": 1.0, "web": 3.0}
    weighted = {name: replace(source, weight=weights[name]) for name, source in manifest.sources.items()}
    assert mixture_shares(replace(manifest, sources=weighted)) == {"books": 0.25, "web": 0.75}


def test_samples_are_real_repeatable_and_harmless(folder: ShardFolder) -> None:
    out = shown(folder, 2, seed=3)
    assert out == shown(folder, 2, seed=3)
    assert any(out != shown(folder, 2, seed=seed) for seed in range(4, 12))
    assert "\\x1b[31mred\\x07 and [bold]markup[/bold] :smile: \\u202eright to left" in out
    assert not set(out) & set("\x1b\x07\u202e")
    assert out.count(", document ") == 4
    assert shown(folder, -1).count(", document ") == 0
    everything = shown(folder, 99)
    assert everything.count("books, document ") == 7
    for text in TEXTS["train", "books", "rest"]:
        assert text in "".join(everything.split("\n")) or text[:100] in everything


def test_a_long_sample_is_cut(folder: ShardFolder) -> None:
    whole = max(train_texts("books"), key=len)
    assert len(whole) > 300
    flat = shown(folder, 99).replace("\n", " ")
    assert " ".join(whole[:300].split()) in " ".join(flat.split())
    assert " ".join(whole[:330].split()) not in " ".join(flat.split())


def test_the_picture_has_ink_of_both_corpora(folder: ShardFolder, tmp_path: Path) -> None:
    path = tmp_path / "document_lengths.png"
    assert str(path) in shown(folder, 0, path)
    pixels = matplotlib.image.imread(path)[:, :, :3]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(pixels - np.asarray(colour) / 255).max(axis=2) < 0.02).sum() > 100
    with pytest.raises(DataError, match=r"can't draw .*gone/a\.png: No such file"):
        shown(folder, 0, tmp_path / "gone" / "a.png")
    with pytest.raises(DataError, match=r"can't draw .*a\.html: .*html"):
        shown(folder, 0, tmp_path / "a.html")


def test_damaged_document_starts_are_refused(folder: ShardFolder, tmp_path: Path) -> None:
    shard = folder.manifest.shards[0]
    path = Path(folder.folder) / f"{shard.name}.documents.npy"
    sound = path.read_bytes()
    assert file_sha256(path) == shard.documents_sha256
    try:
        for content in (sound[:-8], b"", _saved(np.zeros(shard.documents)), _saved(np.arange(shard.documents) + 1)):
            path.write_bytes(content)
            with pytest.raises(DataError, match=rf"{shard.name}\.documents\.npy"):
                bounds(folder, shard)
    finally:
        path.write_bytes(sound)
    assert bounds(folder, shard)[-1] == shard.tokens


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


numbers = st.lists(st.integers(1, 5000), min_size=1, max_size=40)


@given(st.lists(numbers, min_size=1, max_size=4), st.floats(0, 1))
def test_counted_lengths_are_the_lengths(parts: list[list[int]], share: float) -> None:
    lengths = Lengths.between(np.cumsum([0, *part]) for part in parts)
    everything = sorted(length for part in parts for length in part)
    assert np.repeat(lengths.values, lengths.counts).tolist() == everything
    value = lengths.quantile(share)
    assert value in everything
    assert sum(each <= value for each in everything) >= share * len(everything) - 1e-9
    assert sum(each < value for each in everything) < share * len(everything) + 1e-9 or value == everything[0]


@given(numbers)
def test_an_outline_has_all_documents_under_it(part: list[int]) -> None:
    edges, shares = outline(Lengths.between([np.cumsum([0, *part])]))
    assert math.isclose(shares.sum(), 1.0)
    assert edges[0] <= min(part) < edges[1]
    assert edges[-2] <= max(part) < edges[-1]
    assert np.array_equal(edges[1:], 2 * edges[:-1])


def test_samples_are_different_documents_in_order() -> None:
    numbers = list(sampled(10**12, 50, "0/books"))
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 50
    assert max(numbers) < 10**12
    assert numbers != list(sampled(10**12, 50, "1/books"))


def test_all_of_unicode_becomes_printable() -> None:
    for number in (*range(0x3000), 0xFEFF, 0xFFFD, 0x1F600, 0xE0001, 0xD800):
        assert chr(number) == "\n" or printable(chr(number)).isprintable()
    assert printable("é 日本\n\t") == "é 日本\n\\t"


def test_overlap_is_looked_for_in_the_training_documents_of_shards(folder: ShardFolder, tmp_path: Path) -> None:
    rows = [text_of(13), "a bird " * 7, TEXTS["validation", "books", "first"][0].replace("dog", "cat"), "too short"]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert len(Benchmark.from_file(tmp_path / "items.jsonl").items) == 4
    console = Console(width=150, file=io.StringIO())
    overlap_of_shards(str(folder.folder), [tmp_path / "items.jsonl"], console, tmp_path / "overlap.json")
    found = json.loads((tmp_path / "overlap.json").read_text())
    assert found["shards"] == folder.manifest.fingerprint
    items = found["benchmarks"]["items"]
    assert (items["items"], items["dirty"], items["too_short"]) == (4, [0], [3])
    assert [(hit["row"], hit["document"]) for hit in items["corpora"]["books"]] == [(0, 1)]
    assert items["corpora"]["web"] == []
    assert cells(console.file.getvalue(), "items", "books")[2:5] == ["4", "3", "1"]
    with pytest.raises(DataError, match=r"can't write .*gone/o\.json: No such file"):
        overlap_of_shards(str(folder.folder), [tmp_path / "items.jsonl"], console, tmp_path / "gone" / "o.json")
