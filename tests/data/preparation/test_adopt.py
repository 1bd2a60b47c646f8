"""Tokens of other projects, read where they are: llm.c's `.bin` and flat `.npy`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gptstar.checkpoint.read import read
from gptstar.cli import main
from gptstar.data.preparation.adopt import HEADER_INTS, MAGIC
from gptstar.data.preparation.writer import ShardLayout, ShardWriter
from gptstar.data.storage.documents import document_tokens, documents
from gptstar.data.storage.manifest import Manifest, Source, read_manifest, write_manifest
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from support.runs import SMALL, recorded, run_here
from support.text import sentences

Refusal = Callable[..., str]


def write_bin(path: Path, tokens: np.ndarray, *, magic: int = MAGIC, version: int = 1, said: int | None = None) -> Path:
    """A file as llm.c's `write_datafile` writes it."""
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = magic, version, len(tokens) if said is None else said
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    path.write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    return path


def encoded(tokenizer: Path, seed: int, n_documents: int) -> list[np.ndarray]:
    return Tokenizer.from_file(tokenizer).encode(sentences(n_documents, 60, seed))


def joined(texts: list[np.ndarray], end: int, *, opened: bool) -> np.ndarray:
    return np.concatenate([np.append(end, each) if opened else np.append(each, end) for each in texts])


def adopted(folder: Path, tokenizer: Path, *more: str) -> ShardFolder:
    files = sorted(str(path) for path in folder.iterdir() if path.is_file())
    main(["data", "adopt", *files, "--tokenizer", str(tokenizer), "--output", str(folder / "shards"), *more])
    return ShardFolder(folder / "shards")


@pytest.mark.parametrize(
    "form", ["bin", *(pytest.param(each, marks=pytest.mark.slow) for each in ("uint16", "uint32"))]
)
def test_training_is_bitwise_that_on_our_own_shards(form: str, tokenizer: Path, tmp_path: Path) -> None:
    kept, end = Tokenizer.from_file(tokenizer), Tokenizer.from_file(tokenizer).end_of_text
    texts = {"train": encoded(tokenizer, 2, 90), "val": encoded(tokenizer, 3, 20)}
    shards = []
    for split, name in (("train", "train"), ("validation", "val")):
        tokens = joined(texts[name], end, opened=False)
        if form == "bin":
            write_bin(tmp_path / f"theirs/web_{name}_000000.bin", tokens)
        else:
            (tmp_path / "theirs").mkdir(exist_ok=True)
            np.save(tmp_path / f"theirs/web_{name}_000000.npy", tokens.astype(form))
        (tmp_path / "ours").mkdir(exist_ok=True)
        writer = ShardWriter(ShardLayout(tmp_path / "ours", 300, end, 2**30), "theirs", split)
        for each in texts[name]:
            writer.extend(each, int(kept.token_bytes[each].sum()))
            writer.end_document()
        writer.finish()
        shards += writer.finished
    ours = Manifest("", "", kept.fingerprint, 300, {"theirs": Source("here", "none")}, tuple(shards))
    write_manifest(tmp_path / "ours", ours, kept)
    theirs = adopted(tmp_path / "theirs", tokenizer).manifest
    for mine, its in zip(shards, theirs.shards, strict=True):
        same = replace(its, place=None, sha256=mine.sha256, segments_sha256=mine.segments_sha256)
        assert same == mine  # tokens, documents and bytes of text
    for name in ("ours", "theirs/shards"):
        output = tmp_path / f"run-{name[:4]}"
        words = ["data=local", f"data.shards={tmp_path / name}", f"output={output}", "data.windows=documents"]
        run_here([*SMALL, *words])
    one, other = tmp_path / "run-ours", tmp_path / "run-thei"
    for name in ("train/loss", "validation/loss", "validation/bits_per_byte"):
        assert recorded(one, name) == recorded(other, name) != {}
    torch.testing.assert_close(read(one / "last.ckpt").weights, read(other / "last.ckpt").weights, rtol=0, atol=0)
    assert not list((tmp_path / "theirs/shards").glob("*[0-9].npy"))  # the tokens are not copied


@pytest.mark.parametrize("opened", [False, True])
def test_documents_are_where_end_of_text_says(opened: bool, tokenizer: Path, tmp_path: Path) -> None:
    end, texts = Tokenizer.from_file(tokenizer).end_of_text, encoded(tokenizer, 4, 9)
    tokens = joined(texts, end, opened=opened)
    cut = len(tokens) // 2  # within a document, as llm.c cuts its files
    write_bin(tmp_path / "a/x_train_000001.bin", tokens[:cut])
    write_bin(tmp_path / "a/x_train_000002.bin", tokens[cut:])
    write_bin(tmp_path / "a/x_val_000000.bin", tokens)
    folder = adopted(tmp_path / "a", tokenizer, "--corpus", "web", "--licence", "mine")
    assert list(documents(folder, "validation", "web")) == sentences(9, 60, seed=4)
    pieces = list(document_tokens(folder, "train", "web"))
    assert len(pieces) == 10  # one in two pieces
    np.testing.assert_array_equal(np.concatenate(pieces), tokens)
    assert folder.manifest.options["end of text"] == ("before" if opened else "between")
    assert folder.manifest.sources["web"].licence == "mine"
    n_bytes = sum(len(text.encode()) for text in sentences(9, 60, seed=4))
    assert folder.manifest.total("train", "bytes") == folder.manifest.total("validation", "bytes") == n_bytes


def test_a_folder_may_move_with_its_tokens(tokenizer: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_bin(tmp_path / f"a/x_{name}.bin", joined(encoded(tokenizer, 5, 9), 299, opened=True))
    adopted(tmp_path / "a", tokenizer)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(ShardFolder(tmp_path / "b/shards").stream("train", "a"))
    output = tmp_path / "elsewhere/shards"
    files = [str(tmp_path / f"b/x_{name}.bin") for name in ("train", "val")]
    main(["data", "adopt", *files, "--tokenizer", str(tokenizer), "--output", str(output)])
    output.parent.rename(tmp_path / "moved")
    assert len(ShardFolder(tmp_path / "moved/shards").stream("train", "b"))


WELL = np.arange(1, 299)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: write_bin(path, WELL, magic=20240521), "does not begin with llm.c's header (its first number is"),
        (lambda path: path.write_bytes(b"\1\0" * 200), "does not begin with llm.c's header"),
        (lambda path: write_bin(path, WELL, version=7), "has version 7 of llm.c's header"),
        (lambda path: write_bin(path, WELL, said=299), "has 596 bytes after its header, which states 299 tokens"),
        (
            lambda path: write_bin(path, WELL).write_bytes(path.read_bytes() + b"\0"),
            "has 597 bytes after its header, which states 298 tokens",
        ),
        (
            lambda path: write_bin(path, np.asarray([5, 300, 7])),
            "holds the token 300, but the tokenizer has 300 tokens",
        ),
        (lambda path: path.write_bytes(b""), "x_train.bin can't be read as tokens|does not begin with llm.c's header"),
        (lambda path: None, "x_train.bin can't be read as tokens"),
    ],
    ids=["magic", "headerless", "version", "said", "odd", "vocabulary", "empty", "missing"],
)
def test_other_files_are_refused_in_one_line(
    make: Callable[[Path], object], said: str, tokenizer: Path, refusal: Refusal, tmp_path: Path
) -> None:
    write_bin(tmp_path / "x_val.bin", WELL)
    make(tmp_path / "x_train.bin")
    output = tmp_path / "shards"
    files = [str(tmp_path / f"x_{name}.bin") for name in ("train", "val")]
    line = refusal(main, ["data", "adopt", *files, "--tokenizer", str(tokenizer), "--output", str(output)])
    assert any(each in line for each in said.split("|"))
    assert "x_train.bin" in line
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (WELL, "holds int64 of shape (298,), not one row of uint16 or uint32"),
        (WELL.astype("<u2").reshape(2, -1), "holds uint16 of shape (2, 149)"),
        (WELL.astype(">u2"), "holds >u2 of shape (298,)"),
        (WELL[:0].astype("<u2"), "holds uint16 of shape (0,)"),
    ],
)
def test_other_arrays_are_refused_in_one_line(
    array: np.ndarray, said: str, tokenizer: Path, refusal: Refusal, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "y.npy", WELL.astype("<u2"))
    words = [str(tmp_path / "x.npy"), "--validation", str(tmp_path / "y.npy"), "--tokenizer", str(tokenizer)]
    assert said in refusal(main, ["data", "adopt", *words, "--output", str(tmp_path / "shards")])


def test_both_splits_are_asked_for(tokenizer: Path, refusal: Refusal, tmp_path: Path) -> None:
    write_bin(tmp_path / "retrieval.bin", WELL)  # whose name holds `val` within a word
    write_bin(tmp_path / "x_val_0.bin", WELL)
    rest = ["--tokenizer", str(tokenizer), "--output", str(tmp_path / "shards")]
    assert "name one by --validation FILE" in refusal(main, ["data", "adopt", str(tmp_path / "retrieval.bin"), *rest])
    assert "all files are held out for validation" in refusal(
        main, ["data", "adopt", str(tmp_path / "x_val_0.bin"), *rest]
    )


def test_tokens_that_changed_are_named(tokenizer: Path, tmp_path: Path, refusal: Refusal) -> None:
    for name in ("train", "val"):
        write_bin(tmp_path / f"a/x_{name}.bin", WELL)
    adopted(tmp_path / "a", tokenizer)
    main(["data", "verify", str(tmp_path / "a/shards")])
    train = tmp_path / "a/x_train.bin"
    content = train.read_bytes()
    for damaged, said in (
        (content[:-4] + b"\1\0\1\0", "is damaged"),
        (content + b"\1\0", "is damaged"),
        (content[:-2], "is damaged"),
    ):
        train.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"x_train.bin {said}.*: copy it again, or adopt it into another"):
            ShardFolder(tmp_path / "a/shards")
        refusal(main, ["data", "verify", str(tmp_path / "a/shards")])
    train.unlink()
    with pytest.raises(DataError, match=r"x_train.bin is missing, named by its manifest: copy it again"):
        ShardFolder(tmp_path / "a/shards")


def test_what_grew_is_noticed_without_a_hash(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large folders are verified by size alone."""
    for name in ("train", "val"):
        write_bin(tmp_path / f"a/x_{name}.bin", WELL)
    adopted(tmp_path / "a", tokenizer)
    monkeypatch.setattr("gptstar.data.storage.shards.VERIFY_BELOW_BYTES", 0)
    (tmp_path / "a/x_train.bin").write_bytes((tmp_path / "a/x_train.bin").read_bytes() + b"\0\0")
    with pytest.raises(DataError, match=r"x_train.bin has 1,622 bytes where its manifest says 1,620"):
        ShardFolder(tmp_path / "a/shards")


def test_nothing_is_overwritten(tokenizer: Path, tmp_path: Path, refusal: Refusal) -> None:
    write_bin(tmp_path / "x_train.bin", WELL)
    write_bin(tmp_path / "x_val.bin", WELL)
    words = [str(tmp_path / f"x_{name}.bin") for name in ("train", "val")]
    said = refusal(main, ["data", "adopt", *words, "--tokenizer", str(tokenizer), "--output", str(tmp_path)])
    assert "exists and is not overwritten" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x_train.bin", "x_val.bin"]


def test_a_manifest_without_places_is_read_as_before(tokenizer: Path, tmp_path: Path) -> None:
    """Manifests of earlier versions do not have the key."""
    for name in ("train", "val"):
        write_bin(tmp_path / f"a/x_{name}.bin", WELL)
    shard = adopted(tmp_path / "a", tokenizer).manifest.shards[0]
    assert shard.place is not None
    text = (tmp_path / "a/shards/manifest.json").read_text()
    import json

    tree = json.loads(text)
    for each in tree["shards"]:
        del each["place"]
    (tmp_path / "old.json").write_text(json.dumps(tree))
    assert read_manifest(tmp_path / "old.json").shards[0].place is None
