"""From files to documents: forms, places, and what is left out."""

import functools
import gzip
import http.server
import io
import itertools
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFile
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.config import CorpusConfig
from gptstar.data.text.corpora import bundled_corpora, local_corpora, named_corpus
from gptstar.data.text.pieces import cut, decoded_pieces, pieces
from gptstar.data.text.readers import File
from gptstar.data.text.records import Fields, Piece, Record, Skipped
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError


def read(path: Path, start: int = 0, fields: Fields | None = None) -> list[Record]:
    return list(File(str(path), path.stat().st_size, fields or Fields()).read(start))


def texts(records: list[Record]) -> list[str]:
    return [record.text for record in records if isinstance(record, Piece)]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": each, "meta": {}}) + "\n" for each in documents).encode()


def write_parquet(path: Path, documents: list[str | None]) -> None:
    table = pyarrow.table({"text": documents, "other": list(range(len(documents)))})
    pyarrow.parquet.write_table(table, path, row_group_size=5)


def test_every_form_reads_the_same(tmp_path: Path) -> None:
    content = lines(["one", "two é"])
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    frames = [zstandard.compress(part) for part in (content[:10], content[10:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "d.txt.zst").write_bytes(zstandard.compress(b"three"))
    write_parquet(tmp_path / "e.parquet", ["four", "five"])
    corpus = local_corpora(str(tmp_path / "*"))[0]
    assert list(corpus.documents()) == ["one", "two é"] * 3 + ["three", "four", "five"]
    assert corpus.size == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_members_of_an_archive_are_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "text.tar", "w") as archive:
        for name, documents in (("b.jsonl.zst", ["two"]), ("a.jsonl.zst", ["one"]), ("readme.md", [])):
            content = zstandard.compress(lines(documents))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    corpus = local_corpora(f"tar://*.jsonl.zst::file://{tmp_path}/text.tar")[0]
    assert list(corpus.documents()) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_reading_goes_on_anywhere(suffix: str, tmp_path: Path) -> None:
    documents = [f"document {number}" for number in range(23)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write_parquet(path, [*documents])
    else:
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(lines(documents)))
    for start in range(25):
        records = read(path, start)
        assert texts(records) == documents[start:]
        assert [record.record for record in records] == list(range(start + 1, 24))


BROKEN = [
    (b"{\n", "not JSON"),
    (b'{"text": ' + b"[" * 100_000 + b"\n", "not JSON"),
    (b'{"txt": 1}\n', 'no "text" field'),
    (b"[1, 2]\n", 'no "text" field'),
    (b'{"text": 3}\n', '"text" is not a string'),
    (b'{"text": ""}\n', "empty"),
    (b'{"text": "\xff"}\n', "not UTF-8"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[f"{number}" for number in range(len(BROKEN))])
def test_broken_lines_are_left_out_with_their_place(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["one"]) + line + lines(["three"]))
    records = read(path)
    assert texts(records) == ["one", "three"]
    assert isinstance(records[1], Skipped)
    assert (records[1].reason, records[1].place, records[1].record) == (reason, f"{path}, line 2", 2)


def test_a_line_without_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptstar.data.text.readers.LINE_BYTES", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["one", "x" * 3_000_000, "three"]))
    first, second, third = read(path)
    assert (texts([first]), texts([third])) == (["one"], ["three"])
    assert isinstance(second, Skipped)
    assert second.reason == "a line longer than 1 MiB"
    assert third.record == 3


def test_half_characters_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b \\ud83d\\ude00"}\n{"text": "b"}\n')
    records = read(tmp_path / "a.jsonl")
    assert texts(records) == ["a\ufffdb \U0001f600", "b"]
    assert [isinstance(record, Piece) and record.repaired for record in records] == [True, False]


def test_text_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\xff\xfe")
    (record,) = read(tmp_path / "a.txt")
    assert isinstance(record, Skipped)
    assert record.reason == "not UTF-8"


def test_parquet_without_text_is_left_out_row_by_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["one", None, ""])
    reasons = [record.reason for record in read(tmp_path / "a.parquet") if isinstance(record, Skipped)]
    assert reasons == ['"text" is not a string', "empty"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.zst", b"nothing"),
        ("a.jsonl.gz", gzip.compress(lines(["a"] * 100), mtime=0)[:50]),
        ("a.jsonl.zst", zstandard.compress(lines([str(n) for n in range(20_000)]))[:-9]),
        ("a.parquet", b"PAR1 and no more"),
    ],
    ids=["no-zst", "cut-gz", "cut-zst", "no-parquet"],
)
def test_damaged_files_are_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_fields_inside_fields_and_dates(tmp_path: Path) -> None:
    days = ["2018-12-31", "2019-01-01T00:30:00Z", 1_600_000_000, "someday", None]
    rows = [{"doc": {"body": f"document {n}"}, "meta": {"date": day}} for n, day in enumerate(days)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read(tmp_path / "a.jsonl", fields=Fields("doc.body", "meta.date", date(2018, 12, 31)))
    assert texts(records) == ["document 1", "document 2"]
    reasons = Counter(record.reason for record in records if isinstance(record, Skipped))
    assert reasons == {"not newer than 2018-12-31": 1, "no date": 2}


def test_a_folder_is_read_as_the_hub_would_be(tmp_path: Path) -> None:
    documents = [f"document {number}" for number in range(12)]
    for part in range(3):
        write_parquet(tmp_path / f"train-{part:05d}-of-00003.parquet", [*documents[part::3]])
    corpus = named_corpus("wiki", CorpusConfig(hub=str(tmp_path)))
    assert [unit.name for unit in corpus.units] == [f"{tmp_path}, shard {index}" for index in range(3)]
    assert list(corpus.documents()) == documents[::3] + documents[1::3] + documents[2::3]
    records = list(corpus.units[1].read(2))
    assert (texts(records), [record.record for record in records]) == (documents[1::3][2:], [3, 4])


def test_a_dataset_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the dataset .* can't be read .*: check its name") as refused:
        named_corpus("wiki", CorpusConfig(hub=str(tmp_path / "nowhere")))
    assert "\n" not in str(refused.value)


def test_a_corpus_that_was_withdrawn_says_why() -> None:
    with pytest.raises(
        DataError, match=r"books3 has no source \(it was withdrawn\): give .* data.corpora.books3.files"
    ):
        named_corpus("books3", CorpusConfig(note="it was withdrawn"))


def test_patterns_that_match_nothing_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't match any file"):
        local_corpora(str(tmp_path / "*.jsonl"))
    (tmp_path / "a.pdf").touch()
    with pytest.raises(DataError, match=r"a\.pdf has an unknown format"):
        local_corpora(str(tmp_path / "*"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"data\.corpora\.bokos doesn't match a folder"):
        local_corpora(str(tmp_path / "*.txt"), {"bokos": CorpusConfig()})
    with pytest.raises(DataError, match=r"nosuch://a/\*.txt can't be looked up"):
        local_corpora("nosuch://a/*.txt")


@pytest.mark.slow
def test_the_bundled_corpus_is_a_few_megabytes_of_english() -> None:
    documents = [text for corpus in bundled_corpora() for text in corpus.documents()]
    assert sum(map(len, documents)) > 1e6
    assert any("Assignment statements are used to (re)bind names to values" in text for text in documents)


@given(st.text(max_size=300), st.integers(2, 40))
@settings(deadline=None)
def test_pieces_join_to_the_text(text: str, limit: int) -> None:
    parts = list(pieces(text, limit))
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts[:-1])
    assert "".join(decoded_pieces(io.BytesIO(text.encode()), limit)) == text


def test_a_long_document_comes_in_pieces_that_know_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptstar.data.text.records.PIECE_CHARACTERS", 2**22)
    text = "".join(f"line {number} of a book <b>\n" for number in range(400_000))
    (tmp_path / "a.jsonl").write_bytes(lines(["short", text]))
    (tmp_path / "b.txt").write_text(text)
    short, *parts = read(tmp_path / "a.jsonl")
    assert texts([short]) == ["short"]
    for each in (parts, read(tmp_path / "b.txt")):
        assert len(each) > 2
        assert "".join(texts(each)) == text
        assert [part.first for part in each if isinstance(part, Piece)] == [True] + [False] * (len(each) - 1)
        assert [part.last for part in each] == [False] * (len(each) - 1) + [True]
        assert [part.plain for part in each if isinstance(part, Piece)] == [True] + [False] * (len(each) - 1)
    assert {part.digest for part in parts if isinstance(part, Piece)} == {
        part.digest for part in read(tmp_path / "b.txt") if isinstance(part, Piece)
    }


def words() -> Iterator[str]:
    """Forty scripts and what lies between words."""
    yield from [
        "Hello",
        "world",
        "don't",
        "1234",
        "x²",
        "",
        "tabs\tand\n\nlines",
        "\r\n",
        "—",
        "…",
        "“q”",
        "é",
        "ﬁ",
        "Ⅷ",
        "\x00",
        "\u200b",
    ]
    for start in range(0x370, 0x1C00, 0x60):  # Greek to Lepcha
        yield "".join(map(chr, range(start, start + 9)))
    yield from ("日本語", "한국어", "中文。没有空格", "🦊👩‍👩‍👧", "\U0001d518\U00010348")


@given(st.lists(st.sampled_from(list(words())), max_size=60), st.sampled_from([" ", "\n", "", "\n\n"]))
@settings(deadline=None, max_examples=200)
def test_pieces_have_the_tokens_of_the_whole(shared: Path, parts: list[str], between: str) -> None:
    tokenizer = _gpt2(shared)
    text = between.join(parts)
    place = cut(text, 2 * len(text) // 3 + 1)
    if 0 < place < 2 * len(text) // 3 + 1:  # not cut for want of a place
        whole, left, right = tokenizer.encode([text, text[:place], text[place:]])
        assert [*left, *right] == [*whole]


@functools.cache
def _gpt2(shared: Path) -> Tokenizer:
    return Tokenizer.from_file(shared / "tokenizer/gpt2.json")


@given(st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".txt.zst"]), st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(content)
    records: list[Record] = []
    refused = ""
    try:
        records = read(path)
    except DataError as error:
        refused = str(error)
    assert not refused or (str(path) in refused and "\n" not in refused)
    assert all(texts([record]) or isinstance(record, Skipped) for record in records)
    if suffix == ".jsonl":
        assert len(records) == sum(not line.isspace() for line in io.BytesIO(content))


@given(st.lists(st.text(), max_size=9), st.binary(max_size=9), st.integers(0, 9))
@settings(deadline=None)
def test_a_broken_line_costs_no_other(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], broken: bytes, where: int
) -> None:
    path = tmp_path_factory.mktemp("one") / "a.jsonl"
    rows = [json.dumps({"text": each}).encode() for each in documents]
    rows.insert(where, b"{" + broken.replace(b"\n", b" "))
    path.write_bytes(b"\n".join(rows))
    found = texts(read(path))
    kept = [each.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for each in documents if each.strip()]
    assert found == kept


@pytest.mark.parametrize("name", ["a.ndjson", "A.JSONL", "a.Json.GZ", "A.NDJSON.ZST"])
def test_the_form_is_told_by_the_ending_in_any_case(name: str, tmp_path: Path) -> None:
    pack = gzip.compress if name.endswith("GZ") else zstandard.compress if name.endswith("ZST") else bytes
    (tmp_path / name).write_bytes(pack(lines(["one", "two"])))
    assert list(local_corpora(str(tmp_path / "*"))[0].documents()) == ["one", "two"]


@pytest.mark.parametrize(("content", "name"), [(b" \n\t ", "a.txt"), (lines([" ", "\n\u3000"]), "a.jsonl")])
def test_white_space_alone_is_empty(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert {each.reason for each in read(tmp_path / name) if isinstance(each, Skipped)} == {"empty"}
    assert not texts(read(tmp_path / name))


def test_a_column_is_found_by_its_name_and_else_inside_fields(tmp_path: Path) -> None:
    rows = [{"a.b": "flat"}, {"a": {"b": "inside"}}, {"a.b": "flat", "a": {"b": "inside"}}, {"a": {}, "a.x": 1}]
    path, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read(path, fields=Fields("a.b"))
    assert texts(records) == ["flat", "inside", "flat"]
    assert [each.reason for each in records if isinstance(each, Skipped)] == ['no "a.b" field']
    path.write_text(json.dumps({"a.b": {"c": "deep"}, "a": {"b.c": 1}}) + "\n")
    assert texts(read(path, fields=Fields("a.b.c"))) == ["deep"]
    for columns in ({"a.b": ["x"], "a.c": ["no"]}, {"a": [{"b": "x", "c": "no"}]}):
        pyarrow.parquet.write_table(pyarrow.table(columns), table)
        assert texts(read(table, fields=Fields("a.b"))) == ["x"]


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_is_read_from_any_row_on(form: str, tmp_path: Path) -> None:
    documents = [f"document {number}" for number in range(23)]
    table = pyarrow.table({"text": documents, "other": list(range(23))})
    new = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with new(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    for start in (0, 4, 5, 22, 23):
        records = read(tmp_path / "a.arrow", start)
        assert texts(records) == documents[start:]
        assert [each.record for each in records] == list(range(start + 1, 24))
    content = (tmp_path / "a.arrow").read_bytes()
    for damage in (content[: len(content) // 2], b"", b"no arrow at all, but text"):
        (tmp_path / "a.arrow").write_bytes(damage)
        with pytest.raises(DataError, match=r"a\.arrow"):
            read(tmp_path / "a.arrow")


def test_a_saved_dataset_is_read_by_its_folder(tmp_path: Path) -> None:
    import datasets

    documents = [f"document {number}" for number in range(9)]
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(tmp_path / "saved", num_shards=2)
    corpus = named_corpus("x", CorpusConfig(hub=str(tmp_path / "saved")))
    assert list(corpus.documents()) == documents
    before = corpus.identity
    datasets.Dataset.from_dict({"text": documents[1:]}).save_to_disk(tmp_path / "saved", num_shards=2)
    assert named_corpus("x", CorpusConfig(hub=str(tmp_path / "saved"))).identity != before
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow is missing, although .*state\.json lists it"):
        named_corpus("x", CorpusConfig(hub=str(tmp_path / "saved")))
    (tmp_path / "saved/state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state\.json doesn't list the files"):
        named_corpus("x", CorpusConfig(hub=str(tmp_path / "saved")))


def test_a_lost_connection_is_taken_up_at_the_same_record(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"document {number} " + "x" * 50_000 for number in range(97)]
    store = fsspec.filesystem("memory")
    store.pipe("/lost/a.jsonl.gz", gzip.compress(lines(documents)))
    plain_read, reads = MemoryFile.read, itertools.count()

    def read_with_losses(self: MemoryFile, *size: int) -> bytes:
        if next(reads) in (3, 11):
            raise ConnectionError("the connection was lost")
        return plain_read(self, *size)

    monkeypatch.setattr(MemoryFile, "read", read_with_losses)
    monkeypatch.setattr("gptstar.data.text.readers.RETRY_SECONDS", (0.0, 0.0))
    file = File("memory://lost/a.jsonl.gz", None, Fields())
    assert texts(list(file.read())) == documents
    reads = itertools.count(3)
    monkeypatch.setattr("gptstar.data.text.readers.RETRY_SECONDS", ())
    with pytest.raises(DataError, match=r"memory://lost/a\.jsonl\.gz can't be read \(the connection was lost\)"):
        list(file.read())
    store.rm("/lost", recursive=True)


def test_text_is_read_over_http(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl.zst").write_bytes(zstandard.compress(lines(["one", "two"])))
    (tmp_path / "text/b.txt").write_text("three")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/text"
        assert list(local_corpora(f"{address}/*")[0].documents()) == ["one", "two", "three"]
        assert list(local_corpora([f"{address}/b.txt"])[0].documents()) == ["three"]
        with pytest.raises(DataError, match="doesn't match any file"):
            local_corpora(f"{address}/c.txt")
        server.shutdown()
