"""The floor plan: which room may see which, that no file imports itself through others, and how large a room may be."""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / "src/gptstar"
FILES = sorted(PACKAGE.rglob("*.py"))

RANKS = [
    {"errors"},
    {"fields", "files", "ranks", "terminal"},
    {"choices", "plots"},
    {"keys"},
    {"model"},
    {"data"},
    {"checkpoint"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"config", "defaults"},
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
    "omegaconf": {"config", "defaults", "entry", "cli/run", "launch", "training/settings"},
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
    "matplotlib": {"data/inspection/pictures", "plots"},
    "pandas": {"results"},
    "pydantic": {
        *("fields", "config", "choices", "data/storage/manifest", "evaluation/results", "evaluation/tasks"),
        "evaluation/length/compare",
    },
    "wandb": {"training/tracker"},
    "safetensors": {"checkpoint/huggingface"},
    "scipy": {"evaluation/statistics"},
    "annotated_types": {"fields"},
    "transformers": {"checkpoint/huggingface/modeling_gptstar"},
}
"""Where each library may be imported: files or folders of the package."""


def nodes(tree: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    """All nodes of a tree, also those within functions; without the bodies of `if TYPE_CHECKING` unless `for_types`."""
    for node in ast.iter_child_nodes(tree):
        yield node
        only_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not only_types or for_types:
            yield from nodes(node, for_types=for_types)


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports(path: Path, *, for_types: bool = True) -> Iterator[str]:
    for node in nodes(parsed(path.read_text()), for_types=for_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return next(number for number, rooms in enumerate(RANKS) if name in rooms)


def test_imports_point_one_way() -> None:
    offenders = [
        f"{path} imports {module}"
        for path in FILES
        if room(path) != "__init__"
        for module in imports(path)
        if module.startswith("gptstar.") and not module.startswith("gptstar.__")
        if (imported := module.split(".")[1]) != room(path) and rank(imported) >= rank(room(path))
    ]
    assert not offenders


def test_libraries_stay_in_their_rooms() -> None:
    offenders = []
    for path in FILES:
        here = path.relative_to(PACKAGE).with_suffix("")
        enclosing = {str(folder) for folder in (here, *here.parents)}
        for module in imports(path):
            rooms = THIRD_PARTIES.get(module.split(".")[0])
            if rooms is not None and not enclosing & rooms:
                offenders.append(f"{path} imports {module}")
    assert not offenders


def imported_files(path: Path, root: Path) -> set[Path]:
    """The files below `root` that a file imports when it runs, at its top or within its functions."""
    found = set()
    for name in imports(path, for_types=False):
        parts = name.split(".")
        for depth in range(len(parts), 0, -1):  # a name may be a module, or what a module defines
            module = root.joinpath(*parts[:depth])
            if files := [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()]:
                found.add(files[0])
                break
    return found


def cycle(graph: Mapping[str, Collection[str]]) -> list[str] | None:
    """Nodes that lead back to the first of them, or None where no node leads back to itself."""
    done: set[str] = set()

    def follow(path: list[str]) -> list[str] | None:
        for node in sorted(graph[path[-1]]):
            if node in path:
                return [*path[path.index(node) :], node]
            if node not in done and (found := follow([*path, node])):
                return found
        done.add(path[-1])
        return None

    return next((found for node in sorted(graph) if node not in done and (found := follow([node]))), None)


def graph_of(root: Path) -> dict[str, list[str]]:
    files = sorted((root / "gptstar").rglob("*.py"))
    return {
        str(path.relative_to(root)): [str(file.relative_to(root)) for file in imported_files(path, root)]
        for path in files
    }


def test_no_file_imports_itself_through_others() -> None:
    graph = graph_of(PACKAGE.parent)
    assert "gptstar/checkpoint/parts.py" in graph["gptstar/checkpoint/read.py"]  # within a function
    assert "gptstar/model/gpt.py" in graph["gptstar/model/__init__.py"]
    found = cycle(graph)
    assert found is None, " → ".join(found or [])


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": []}, None),
        ({"a": ["a"]}, ["a", "a"]),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, None),  # two ways to the same file are none
        ({"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]}, ["b", "c", "d", "b"]),
        ({"a": [], "b": ["c", "a"], "c": ["a", "b"]}, ["b", "c", "b"]),
    ],
)
def test_cycles_are_found(graph: dict[str, list[str]], expected: list[str] | None) -> None:
    assert cycle(graph) == expected


def test_imports_within_functions_count_and_those_for_types_do_not(tmp_path: Path) -> None:
    package = tmp_path / "gptstar"
    (package / "b").mkdir(parents=True)
    (package / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gptstar.c import Name\nfrom gptstar.b import d\n"
    )
    (package / "b/__init__.py").write_text("")
    (package / "b/d.py").write_text("import gptstar.c\n")
    (package / "c.py").write_text("")
    assert graph_of(tmp_path)["gptstar/a.py"] == ["gptstar/b/d.py"]
    assert cycle(graph_of(tmp_path)) is None
    (package / "c.py").write_text("def f():\n    from gptstar.a import name\n")
    assert cycle(graph_of(tmp_path)) == ["gptstar/a.py", "gptstar/b/d.py", "gptstar/c.py", "gptstar/a.py"]


def test_the_table_finds_what_it_looks_for() -> None:
    assert {"hydra", "omegaconf"} <= {m.split(".")[0] for m in imports(PACKAGE / "entry.py")}
    assert rank("model") < rank("cli")


def too_long(paths: Iterable[Path], limit: int) -> list[Path]:
    return [path for path in paths if len(path.read_text().splitlines()) > limit]


def test_files_stay_short() -> None:
    assert not too_long(FILES, 300)
    assert not too_long([ROOT / "train.py", ROOT / "evaluate.py"], 60)
    assert too_long(FILES, 200)


def test_no_room_without_a_name() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "util", "misc", "helpers", "common"}]
