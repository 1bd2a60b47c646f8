"""Sources of runs and evaluations: folders, files, patterns, and lists of these."""

import os
import re
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import TypeAlias

from gptstar.errors import ConfigError

Source: TypeAlias = "str | os.PathLike[str] | Iterable[Source]"
"""A run directory, a folder that contains some at any depth, a results folder or file, a pattern, or a list of them."""

EXAMPLES = "give the output of train.py or evaluate.py, a folder with some, or a pattern such as 'runs/*-seed-*'"


class MissingResultsWarning(UserWarning):
    """The warning that requested results don't exist; the message says how to make them."""


def expand(sources: Iterable[Source]) -> list[Path]:
    """Return the folders and files that sources name, each once; the matches of a pattern are sorted by name.

    Raises:
        ConfigError: there is no source, a path does not exist, or a pattern matches neither a folder nor JSON.
    """
    paths = list(dict.fromkeys(path for source in sources for path in _paths(source)))
    if not paths:
        raise ConfigError(f"no path was given: {EXAMPLES}")
    return paths


def _paths(source: Source) -> Iterator[Path]:
    if not isinstance(source, str | os.PathLike):
        try:
            each_of = iter(source)
        except TypeError:
            raise ConfigError(f"{source!r:.80} is not a path: {EXAMPLES}") from None
        for each in each_of:
            yield from _paths(each)
        return
    path = Path(source).expanduser()
    if path.is_dir():
        yield path
    elif path.exists():
        if path.suffix != ".json":
            raise ConfigError(f"{path} is neither a folder nor a results.json: {EXAMPLES}")
        yield path
    elif has_magic(str(path)):
        matches = (Path(each) for each in glob(str(path), recursive=True))
        matched = [each for each in matches if each.is_dir() or each.suffix == ".json"]
        if not matched:
            raise ConfigError(f"{path} matches no folder and no results.json: {EXAMPLES}")
        yield from sorted(matched, key=natural_key)
    else:
        raise ConfigError(f"{path} does not exist: {EXAMPLES}")


def natural_key(path: Path | str) -> list[tuple[str, float]]:
    """Return a sorting key that orders numbers by value: seed-10 after seed-9, rate-0.001 after rate-3e-4."""
    parts = re.findall(r"(\D+)(\d+(?:\.\d+)?(?:e-?\d+)?)?", f" {path}")
    return [(word, float(number or 0)) for word, number in parts]
