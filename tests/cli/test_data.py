"""`gptstar prepare` and `gptstar data …`, as they are typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.cli import main
from gptstar.data.storage.manifest import read_manifest
from gptstar.data.tokenizer import Tokenizer
from support.runs import SMALL
from support.text import sentences, write_corpus


@pytest.fixture
def request_of(tmp_path: Path) -> list[str]:
    """Overrides of a preparation of three files of text."""
    files = write_corpus(tmp_path / "books", sentences(60, 50, seed=2), files=3)
    (tmp_path / "t.json").write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    return [
        *SMALL,
        "data=local",
        f"data.files={files}",
        f"data.tokenizer={tmp_path}/t.json",
        f"data.shards={tmp_path}/s",
    ]


def test_prepare_says_what_it_made(request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["prepare", *request_of, "+data.corpora.books.epochs=0.5"])
    printed = capsys.readouterr().out
    source = read_manifest(tmp_path / "s/manifest.json").sources["books"]
    assert source.epochs == 0.5
    assert f"books: {source.counts['documents']} documents" in printed
    assert "(0.5 ×)" in printed


def test_parts_are_prepared_and_merged(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    main(["prepare", *request_of, "part=2/2"])
    assert "part-00002-of-00002" in capsys.readouterr().out
    assert "lacks parts" in refusal(main, ["data", "merge", f"{tmp_path}/s"])
    main(["prepare", *request_of, "part=1/2"])
    assert "all 2 parts are there" in capsys.readouterr().out
    (tmp_path / "s/manifest.json").unlink()
    main(["data", "merge", f"{tmp_path}/s"])
    main(["data", "verify", f"{tmp_path}/s"])
    assert "12 files of 4 shards match their manifest" in capsys.readouterr().out


def test_verify_names_what_is_damaged(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    main(["prepare", *request_of])
    path = tmp_path / "s/train-books-00000.documents.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    (tmp_path / "s/validation-books-00000.npy").unlink()
    said = refusal(main, ["data", "verify", f"{tmp_path}/s"])
    assert "2 of 6 files" in said
    assert "train-books-00000.documents.npy, validation-books-00000.npy" in said


def test_inspect_and_overlap_are_typed_as_they_read(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["prepare", *request_of])
    main(["data", "inspect", f"{tmp_path}/s", "--picture", f"{tmp_path}/lengths.png", "--samples", "2"])
    printed = capsys.readouterr().out
    assert printed.count("books, document ") == 2
    assert (tmp_path / "lengths.png").stat().st_size > 1000
    texts = [json.loads(line)["text"] for line in (tmp_path / "books/000.jsonl").read_text().splitlines()]
    (tmp_path / "lambada_openai.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    main(["data", "overlap", f"{tmp_path}/s", f"{tmp_path}/lambada_openai.jsonl", "--json", f"{tmp_path}/o.json"])
    found = json.loads((tmp_path / "o.json").read_text())
    assert "lambada_openai" in json.dumps(found)


@pytest.mark.parametrize("command", ["inspect", "verify", "merge", "overlap"])
def test_a_folder_of_something_else_is_refused(command: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    more = [f"{tmp_path}/x.jsonl"] if command == "overlap" else []
    assert str(tmp_path) in refusal(main, ["data", command, str(tmp_path), *more])


@pytest.mark.parametrize("part", ["0/3", "4/3", "x", "3"])
def test_what_is_no_part_is_refused(part: str, request_of: list[str], refusal: Callable[..., str]) -> None:
    assert f"part={part} is not a part: give part=3/16" in refusal(main, ["prepare", *request_of, f"part={part}"])
