"""Text and shards on a server: prepared from there, trained from there, the same as from here."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from gptstar.data.preparation.parts import Part
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from support.runs import SMALL, run_here
from support.s3 import Server
from support.text import QUIET, config, sentences


@pytest.fixture
def bucket(s3: Server, text: str, tmp_path: Path) -> str:
    """A bucket with `text/` and, prepared from it, `shards/`."""
    name = tmp_path.name.replace("_", "-")
    shards = ensure_prepared(config(files=text, shards=str(tmp_path / "here"), shard_tokens=1500), 300, QUIET)
    store = s3fs.S3FileSystem()
    store.mkdir(name)
    store.put(text.partition("*")[0], f"{name}/text/", recursive=True)
    store.put(f"{shards.folder}/", f"{name}/shards/", recursive=True)
    return f"s3://{name}"


def losses(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{key: row[key] for key in row if "loss" in key} for row in csv.DictReader(file)]


def test_text_is_prepared_from_a_server(bucket: str, tmp_path: Path) -> None:
    near = ensure_prepared(config(shards=str(tmp_path / "here")), 300, QUIET)
    far = ensure_prepared(config(files=f"{bucket}/text/*/*.jsonl", shard_tokens=1500), 300, QUIET)
    assert far.manifest.fingerprint == near.manifest.fingerprint
    assert far.manifest.sources["alpha"].source == f"{bucket}/text/alpha"


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["data.shuffle_tokens=2048", "data.loader_workers=2"], marks=pytest.mark.slow)],
    ids=["all", "groups"],
)
def test_a_run_reads_from_a_server_what_it_would_read_here(bucket: str, options: list[str], tmp_path: Path) -> None:
    for name, shards in (("near", f"{tmp_path}/here"), ("far", f"{bucket}/shards")):
        run_here([*SMALL, "data=local", f"data.shards={shards}", f"output={tmp_path / name}", *options])
    assert losses(tmp_path / "near") == losses(tmp_path / "far")


def test_an_address_that_is_not_there_is_refused(s3: Server, refusal: Callable[..., str], tmp_path: Path) -> None:
    overrides = [*SMALL, "data=local", f"output={tmp_path / 'run'}"]
    assert "s3://nowhere/at/all" in refusal(run_here, [*overrides, "data.shards=s3://nowhere/at/all"])
    assert "s3://nowhere/a*.txt" in refusal(run_here, [*overrides, "data.files=s3://nowhere/a*.txt"])
    far_and_files = [*overrides, "data.shards=s3://nowhere/at/all", "data.files=tests/*.py"]
    assert "data.shards=s3://nowhere/at/all is a remote address" in refusal(run_here, far_and_files)


def test_merged_parts_are_read_from_a_server(s3: Server, text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    asked = config(files=text, tokenizer=tmp_path / "t.json", shards=str(tmp_path / "parts"))
    for number in (1, 2):
        ensure_prepared(asked, 300, QUIET, Part(number, 2))
    store = s3fs.S3FileSystem()
    store.mkdir("merged-parts")
    store.put(f"{tmp_path}/parts/", "merged-parts/", recursive=True)
    near, far = ShardFolder(tmp_path / "parts"), ShardFolder("s3://merged-parts")
    for corpus in ("alpha", "beta"):
        one, other = near.stream("train", corpus), far.stream("train", corpus)
        assert one.read(0, len(one)).tolist() == other.read(0, len(other)).tolist()
