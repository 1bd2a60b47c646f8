"""Text for studies of context length: every form, exact bytes, and refusals that name file, line and column."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.text import Text, encode, text_of_files, text_of_shards
from support.text import QUIET, config, sentences

DOCUMENTS = ["the first, with émigrés", "", "a second\n\nof two lines and <|endoftext|> as text"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the first and second émigrés of two lines", *sentences(3, 60, 0)], 300)


def tokenised(path: Path | str, tokenizer: Tokenizer, **settings: object) -> Text:
    return text_of_files(tokenizer, LengthConfig(text=str(path), **settings))


def read_back(text: Text, tokenizer: Tokenizer) -> list[str]:
    """The documents' texts; each begins with an end-of-text that is not scored."""
    found = []
    for document in text.documents:
        tokens = document.read(0, len(document))
        assert tokens[0] == tokenizer.end_of_text
        found.append(tokenizer._backend.decode(tokens[1:].tolist(), skip_special_tokens=False))
    return found


def write(folder: Path, form: str) -> Path:
    path = folder / f"text{form}"
    lines = "".join(json.dumps({"page": each}) + "\n" for each in DOCUMENTS).encode()
    if form == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"page": DOCUMENTS}), path)
    else:
        compressed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, lambda data: data)
        path.write_bytes(compressed(lines))
    return path


@pytest.mark.parametrize("form", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_documents_are_kept_apart_and_their_bytes_are_exact(form: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = tokenised(write(tmp_path, form), tokenizer)
    written = [each for each in DOCUMENTS if each]
    assert read_back(text, tokenizer) == written
    for document, expected in zip(text.documents, written, strict=True):
        tokens = document.read(1, len(document) - 1)
        assert text.token_bytes[tokens].sum() == len(expected.encode())
    assert text.exact_bytes
    assert list(text.source["files"]) == [str(tmp_path / f"text{form}")]
    assert len(text.source["files"][str(tmp_path / f"text{form}")]) == 64


@pytest.mark.parametrize("name", ["wiki.test.raw", "enwik8", "text8.gz", "a.txt"])
def test_any_other_file_is_one_document(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = "émigrés and more\n\n" * 20
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    text = tokenised(tmp_path / name, tokenizer)
    assert read_back(text, tokenizer) == [content]
    end = tokenised(tmp_path / name, tokenizer, last_bytes=len(data) - 1)
    assert read_back(end, tokenizer) == [content[1:]]  # from a whole character on
    zipped = pytest.importorskip("zipfile")
    with zipped.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("member", data)
    member = tokenised(f"zip://member::{tmp_path / 'all.zip'}", tokenizer)
    assert read_back(member, tokenizer) == [content]


def test_joined_documents_are_one_stream_whose_separators_are_scored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = str(write(tmp_path, ".jsonl"))
    apart = tokenised(path, tokenizer)
    joined = tokenised(path, tokenizer, documents="joined")
    tokens = np.concatenate([each.read(0, len(each)) for each in apart.documents])
    assert joined.sizes.tolist() == [len(tokens) - 1]
    assert joined.documents[0].read(0, len(tokens)).tolist() == tokens.tolist()
    assert joined.exact_bytes


def test_a_long_text_is_tokenised_in_pieces_to_the_same_tokens(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(sentences(3, 400, 1)), "short"]
    whole = tokenizer.encode(texts)
    monkeypatch.setattr("gptstar.data.text.pieces.PIECE_CHARACTERS", 97)
    monkeypatch.setattr("gptstar.data.text.pieces.pieces.__defaults__", (97,))
    for found, expected in zip(encode(tokenizer, texts), whole, strict=True):
        assert found.tolist() == expected.tolist()


def test_a_tokenizer_that_changes_text_is_noticed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.json_text)
    tree["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "a.txt").write_text("İstanbul")  # its lower case takes another byte
    assert not tokenised(tmp_path / "a.txt", Tokenizer(json.dumps(tree))).exact_bytes


def test_held_out_shards_are_streams_as_in_training_or_documents(text: str, tmp_path: Path) -> None:
    shards = ensure_prepared(config(files=text, shards=str(tmp_path / "s"), validation_fraction=0.2), 300, QUIET)
    joined, apart = text_of_shards(shards), text_of_shards(shards, joined=False)
    streams = [shards.stream("validation", corpus) for corpus in ("alpha", "beta")]
    assert joined.sizes.tolist() == [len(stream) - 1 for stream in streams]
    assert len(apart.documents) == shards.manifest.total("validation", "documents")
    end = shards.tokenizer.end_of_text
    tokens = np.concatenate([document.read(1, len(document) - 1) for document in apart.documents])
    everything = np.concatenate([stream.read(0, len(stream)) for stream in streams])
    assert tokens.tolist() == everything[everything != end].tolist()
    assert apart.token_bytes[tokens].sum() == shards.manifest.total("validation", "bytes")


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ('{"body": "x"}\n', None, r'a.jsonl, line 1: no "text" or "page" field: name the text\'s as evaluation.column'),
        ('{"body": "x"}\n', "text", r'a.jsonl, line 1: no "text" field'),
        ('{"text": "x"}\n\n{"page": "y"}\n', None, r'a.jsonl, line 3: no "text" field'),
        ('{"text": "x"}\nnonsense\n', None, "a.jsonl, line 2: not JSON"),
        ('{"text": ""}\n', None, "nothing but empty documents"),
    ],
)
def test_records_without_text_are_refused_by_place(
    content: str, column: str | None, message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        tokenised(tmp_path / "a.jsonl", tokenizer, column=column)


def test_files_that_are_no_text_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, data, message in (
        ("a.zip", b"PK\xff\xfe", r"not UTF-8 text.*read a member of an archive as zip://NAME::FILE"),
        ("a.gz", b"no gzip", "can't be read"),
        ("a.txt", b"", "is empty"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            tokenised(tmp_path / name, tokenizer)
    with pytest.raises(DataError, match=r"evaluation.text: .*none\.\* matches no file"):
        tokenised(tmp_path / "none.*", tokenizer)
    with pytest.raises(DataError, match=r"evaluation.last_bytes is for plain text"):
        tokenised(write(tmp_path, ".jsonl"), tokenizer, last_bytes=9)
