"""The code files in an exported folder: each stands alone, or imports from the files next to it."""

import ast
import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Annotated, get_args, get_origin

import gptstar.fields
import gptstar.model.positions as package
from gptstar.errors import CheckpointError
from gptstar.model.positions import Positions

OWN = "modeling_gptstar"
"""The module of the modelling file, which may import transformers."""

BESIDE = ("gptstar.checkpoint.huggingface.reading", "gptstar.model.mask", "gptstar.model.softmax_scale")
"""The other modules of this package that the modelling file imports."""

KIND = "Kind"
"""The modelling file's name for the class of its positions."""


def standalone(modelling: str, positions: Positions) -> dict[str, str]:
    """Make the files of transformers' remote code, by name: the modelling file, and the positions that it imports.

    `from gptstar.model.positions.alibi import Alibi` becomes `from .alibi import Alibi`, because transformers copies
    files that are imported like this. Code that only a configuration needs is omitted: the registry and the ranges of
    fields.

    Raises:
        CheckpointError: the file of the positions can't stand alone; names it.
    """
    cls = type(positions)
    if cls.__module__ == "__main__":
        raise CheckpointError(f"{cls.__name__} is defined in a script, which can't be exported: define it in a module")
    files, waiting = {}, {OWN: modelling}
    while waiting:
        name, source = waiting.popitem()
        files[f"{name}.py"], modules = _rewritten(name, source, cls)
        sources = {_file_of(module): module for module in modules}
        waiting |= {file: inspect.getsource(module) for file, module in sources.items() if f"{file}.py" not in files}
    return files


def _rewritten(name: str, source: str, cls: type[Positions]) -> tuple[str, list[ModuleType]]:
    """Rewrite the imports of one file, and return the modules that must be next to it."""
    lines, needed = source.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                if ast.unparse(decorator).startswith("POSITIONS.register("):
                    _replace(lines, decorator, "")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptstar"):
            text, modules = _beside(node, cls)
            _replace(lines, node, text)
            needed += modules
        elif isinstance(node, ast.Import | ast.ImportFrom) and not _is_everywhere(node, own=name == OWN):
            raise CheckpointError(_refused(name, ast.unparse(node)))
    return "".join(lines), needed


def _is_everywhere(node: ast.Import | ast.ImportFrom, *, own: bool) -> bool:
    """Return whether an import works wherever the exported model is loaded."""
    if isinstance(node, ast.ImportFrom):
        modules = ["." if node.level else str(node.module)]
    else:
        modules = [alias.name for alias in node.names]
    known = {*sys.stdlib_module_names, "torch", *(["transformers"] if own else [])}
    return all(module.partition(".")[0] in known for module in modules)


def _beside(node: ast.ImportFrom, cls: type[Positions]) -> tuple[str, list[ModuleType]]:
    """Return the replacement of an import from this package, and the modules that must be next to the file."""
    text, modules = [], []
    for alias in node.names:
        if alias.asname == KIND:
            module, what = import_module(cls.__module__), f"{cls.__name__} as {KIND}"
        elif node.module == gptstar.fields.__name__:
            hint = getattr(gptstar.fields, alias.name)
            plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint  # omit the range
            text.append(f"{alias.asname or alias.name} = {plain.__name__}\n")
            continue
        elif node.module == package.__name__ and alias.name == "POSITIONS":
            continue
        elif node.module == package.__name__:
            named = getattr(package, alias.name)
            module, what = import_module(named.__module__), f"{named.__name__} as {alias.asname or alias.name}"
        elif node.module in BESIDE or (node.module or "").startswith(f"{package.__name__}."):
            module, what = import_module(str(node.module)), ast.unparse(alias)
        else:
            raise CheckpointError(_refused(cls.__module__, ast.unparse(node)))
        text.append(f"from .{_file_of(module)} import {what}\n")
        modules.append(module)
    return "".join(text), modules


def _file_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _replace(lines: list[str], node: ast.stmt | ast.expr, text: str) -> None:
    """Replace a node, which occupies whole lines, by text."""
    assert node.end_lineno is not None
    lines[node.lineno - 1 : node.end_lineno] = [text, *([""] * (node.end_lineno - node.lineno))]


def _refused(name: str, statement: str) -> str:
    return (
        f"{name} can't be exported with `{statement}`: import only torch, the standard library, gptstar.fields and "
        "gptstar.model.positions"
    )
