"""Bundles: complete, verified, resumable, and never over somebody else's file."""

import io
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from gptstar.errors import ConfigError, DataError, Refusal
from gptstar.evaluation.tasks.bundle import bundle
from gptstar.evaluation.tasks.manifest import FILE_NAME, read_manifest
from gptstar.evaluation.tasks.offline import item_hash, load_tasks, source_of
from gptstar.files import file_sha256

pytestmark = pytest.mark.usefixtures("no_network")

PIQA = [{"goal": f"goal {n} é", "sol1": "this", "sol2": "that", "label": n % 2} for n in range(7)]
WINOGRANDE = [
    {"sentence": f"{n} asked two as _ knew.", "option1": "one", "option2": "two", "answer": "1"} for n in range(5)
]
TASKS = ("piqa", "winogrande")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for task, rows in (("piqa", PIQA), ("winogrande", WINOGRANDE)):
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_it_holds_the_same_items_with_their_origin(source: Path, tmp_path: Path, console: Console) -> None:
    folder = tmp_path / "bundle"
    made = bundle(TASKS, folder, source=source, console=console)
    assert made == read_manifest(folder)
    assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME, "piqa.jsonl", "winogrande.jsonl"]
    entry = made["piqa.jsonl"]
    assert (entry.rows, entry.dataset, entry.licence) == (7, "baber/piqa", "AFL-3.0")
    assert (entry.split, entry.stands_for, entry.revision) == (None, "validation", None)  # the source does not say
    assert entry.sha256 == file_sha256(folder / "piqa.jsonl")
    assert entry.bytes == (folder / "piqa.jsonl").stat().st_size
    assert entry.taken_from == file_sha256(source / "piqa.jsonl")
    assert [json.loads(line) for line in (folder / "piqa.jsonl").read_text().splitlines()] == PIQA
    for one, other in zip(load_tasks(TASKS, source), load_tasks(TASKS, folder), strict=True):
        assert list(map(item_hash, one.eval_docs)) == list(map(item_hash, other.eval_docs))
        assert source_of(other)["licence"] == source_of(one)["licence"]
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("\n") == 1
    assert f"evaluation.data_dir={folder}" in printed


def test_real_files_go_through_unchanged(shared: Path, tmp_path: Path, console: Console) -> None:
    tasks = ("lambada_openai", "wikitext", "piqa", "winogrande")
    made = bundle(tasks, tmp_path, source=shared / "benchmarks", console=console)
    assert [made[f"{task}.jsonl"].rows for task in tasks] == [3091, 60, 1102, 760]
    for task in tasks:
        assert file_sha256(tmp_path / f"{task}.jsonl") == file_sha256(shared / "benchmarks" / f"{task}.jsonl")


def test_a_file_that_has_changed_is_refused(source: Path, tmp_path: Path, console: Console) -> None:
    folder = tmp_path / "bundle"
    bundle(TASKS, folder, source=source, console=console)
    content = (folder / "piqa.jsonl").read_text()
    (folder / "piqa.jsonl").write_text(content.replace('"label": 0', '"label": 1', 1))
    for action in (
        lambda: load_tasks(["piqa"], folder),
        lambda: bundle(TASKS, folder, source=source, console=console),
        lambda: bundle(["piqa"], tmp_path / "another", source=folder, console=console),
    ):
        with pytest.raises(DataError, match=r"piqa\.jsonl: sha256 .* has changed since it was bundled"):
            action()
    assert [task.config.task for task in load_tasks(["winogrande"], folder)] == ["winogrande"]


def test_it_goes_on_where_it_was_interrupted(source: Path, tmp_path: Path, console: Console) -> None:
    folder = tmp_path / "bundle"
    whole = bundle(TASKS, folder, source=source, console=console)
    kept = (folder / "piqa.jsonl").stat()
    # killed after the manifest was written and before the file was in its place
    (folder / "winogrande.jsonl").rename(folder / ".winogrande.jsonl.partial")
    assert bundle(TASKS, folder, source=source, console=console) == whole
    assert (folder / "piqa.jsonl").stat().st_ino == kept.st_ino  # not written again
    assert not list(folder.glob(".*.partial"))
    load_tasks(TASKS, folder)

    (source / "piqa.jsonl").write_text(json.dumps(PIQA[3]) + "\n")
    assert bundle(TASKS, folder, source=source, console=console)["piqa.jsonl"].rows == 1


def test_few_shot_examples_come_along(source: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(DataError, match=r"lacks piqa/train\.jsonl"):
        bundle(["piqa"], tmp_path / "bundle", source=source, console=console, num_fewshot=3)
    (source / "piqa").mkdir()
    (source / "piqa" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PIQA))
    made = bundle(["piqa"], tmp_path / "bundle", source=source, console=console, num_fewshot=3)
    assert set(made) == {"piqa.jsonl", "piqa/train.jsonl"}
    assert made["piqa/train.jsonl"].split == "train"
    (task,) = load_tasks(["piqa"], tmp_path / "bundle", num_fewshot=3)
    assert task.dataset["train"].num_rows == 7


def test_what_is_in_the_way_stays(source: Path, tmp_path: Path, console: Console) -> None:
    (tmp_path / "bundle").mkdir()
    mine = tmp_path / "bundle" / "piqa.jsonl"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"piqa\.jsonl is in the way"):
        bundle(TASKS, tmp_path / "bundle", source=source, console=console)
    assert mine.read_text() == "mine"


def test_refusals_are_one_line(source: Path, tmp_path: Path, console: Console) -> None:
    folder = tmp_path / "bundle"
    (tmp_path / "file").touch()
    (source / "winogrande.jsonl").write_text('{"sentence": "a"}\n')
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / FILE_NAME).write_text("{}")
    for told, action in {
        "another folder": lambda: bundle(TASKS, source, source=source, console=console),
        "must be another folder": lambda: bundle(TASKS, folder, source=tmp_path / "none", console=console),
        "lacks wikitext.jsonl": lambda: bundle(["wikitext"], folder, source=source, console=console),
        "winogrande.jsonl, line 1: no column 'option1'": lambda: bundle(TASKS, folder, source=source, console=console),
        "can't be written": lambda: bundle(TASKS, tmp_path / "file" / "x", source=source, console=console),
        "not a manifest as": lambda: bundle(TASKS, tmp_path / "odd", source=source, console=console),
        "piqa on the Hub, can't be loaded": lambda: bundle(["piqa"], tmp_path / "hub", source=None, console=console),
    }.items():
        with pytest.raises(Refusal) as refused:
            action()
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("hub/*.jsonl"))


def test_from_the_hub(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder of the dataset's name for the dataset: the Hub's columns and splits, and no network."""
    where = tmp_path / "baber" / "piqa"
    where.mkdir(parents=True)
    for split, rows in (("train", PIQA[:2]), ("validation", PIQA)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), where / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = bundle(["piqa"], tmp_path / "bundle", source=None, console=console, num_fewshot=1)
    assert {name: (entry.split, entry.rows) for name, entry in made.items()} == {
        "piqa.jsonl": ("validation", 7),
        "piqa/train.jsonl": ("train", 2),
    }
    (hub,), (local,) = load_tasks(["piqa"], None), load_tasks(["piqa"], tmp_path / "bundle")
    assert list(hub.eval_docs) == list(local.eval_docs) == PIQA
    assert source_of(hub) == {
        "dataset": "baber/piqa",
        "config": None,
        "revision": None,
        "licence": "AFL-3.0",
        "split": "validation",
        "stands_for": "validation",
        "rows": 7,
    }
    assert bundle(["piqa"], tmp_path / "bundle", source=None, console=console) == made  # nothing to do: no Hub needed
