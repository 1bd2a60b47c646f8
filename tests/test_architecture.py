"""The floor plan: which room may see which, and how large a room may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src/gptstar"
FILES = sorted(PACKAGE.rglob("*.py"))

RANKS = [
    {"errors"},
    {"fields", "files", "ranks"},
    {"choices"},
    {"keys"},
    {"model"},
    {"data"},
    {"checkpoint"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"config"},
    {"entry"},
    {"results"},
    {"launch"},
    {"cli"},
    {"__main__"},
]
"""Imports point to an earlier line only."""

THIRD_PARTIES = {
    "hydra": {"entry", "launch"},
    "bitsandbytes": {"training/optimizers/adamw_8bit"},
    "omegaconf": {"config", "entry", "cli/run", "launch", "training/status", "training/settings"},
    "jinja2": {"results/report", "results/card", "evaluation/tasks/offline"},
    "lightning": {"training", "data/datamodule"},
    "datasets": {"data/text/hub", "evaluation/tasks"},
    "gradio": {"inference/demo/page"},
    "httpx": {"checkpoint/published/fetch"},
    "huggingface_hub": {"results/card", "data/text/hub", "evaluation/tasks/hub"},
    "pyarrow": {"data/text/readers", "evaluation/tasks/local_files"},
    "fsspec": {"data/text/readers", "data/text/corpora", "data/storage/remote", "data/storage/remote_files"},
    "ftfy": {"data/text/clean"},
    "tokenizers": {"data/tokenizer"},
    "lm_eval": {"evaluation/harness", "evaluation/tasks"},
    "matplotlib": {"data/inspection/pictures", "evaluation/plots", "evaluation/tasks/pictures", "results"},
    "pandas": {"results"},
    "pydantic": {"config", "choices", "data/storage/shards", "evaluation/results", "evaluation/tasks"},
    "wandb": set(),
    "safetensors": {"checkpoint/huggingface"},
    "scipy": {"evaluation/statistics"},
    "annotated_types": {"fields"},
    "statsmodels": {"evaluation/statistics"},
    "transformers": {"checkpoint/huggingface/modeling_gptstar"},
}
"""Where each library may be imported: files or folders of the package."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return next(number for number, rooms in enumerate(RANKS) if name in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    if room(path) == "__init__":
        return
    for module in imports(path):
        if module.startswith("gptstar.") and not module.startswith("gptstar.__"):
            imported = module.split(".")[1]
            assert imported == room(path) or rank(imported) < rank(room(path)), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("")
    enclosing = {str(folder) for folder in (here, *here.parents)}
    for module in imports(path):
        rooms = THIRD_PARTIES.get(module.split(".")[0])
        assert rooms is None or enclosing & rooms, f"{path} imports {module}"


def test_the_table_finds_what_it_looks_for() -> None:
    assert {"hydra", "omegaconf"} <= {m.split(".")[0] for m in imports(PACKAGE / "entry.py")}
    assert rank("model") < rank("cli")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_entry_points_stay_shorter(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 60


def test_no_room_without_a_name() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "util", "misc", "helpers", "common"}]
