"""Commands as a person would type them: without needless quotes, and with the jobs of a sweep as one command."""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath

WIDTH = 88
PLAIN_IN_SHELL = re.compile(r"[\w@%+=:,./~^-]*")
NOT_TEXT = r"null|true|false|[+-]?(?:inf|nan|[\d_.]*(?:e[+-]?\d+)?)"
PLAIN_IN_HYDRA = re.compile(rf"'(?!(?:{NOT_TEXT})')([\w@%+./~:-]*)'", re.IGNORECASE)


def as_typed(commands: Sequence[str]) -> list[str]:
    """Format commands for a shell, wrapped; jobs of one folder that form a grid of values become one sweep.

    A command that can't be split into words, such as some old ones, is kept verbatim.
    """
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    unreadable = []
    for command in dict.fromkeys(filter(None, commands)):
        try:
            words = list(map(_without_hydra_quotes, _without_sweep(shlex.split(command))))
        except ValueError:
            unreadable.append(command)
            continue
        keys = tuple(word.partition("=")[0] for word in words)
        folder = next((word.rpartition("/")[0] for word in words if word.startswith("output=")), "")
        groups.setdefault((*keys, folder), []).append(words)
    typed = [_wrapped(words) for jobs in groups.values() for words in _as_sweep(jobs)]
    return [*typed, *unreadable]


def _as_sweep(jobs: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Yield one command with `-m` if the jobs are all combinations of some values, otherwise each job's command."""
    columns = [list(dict.fromkeys(words)) for words in zip(*jobs, strict=True)]
    swept = [n for n, values in enumerate(columns) if len(values) > 1 and not values[0].startswith("output=")]
    combinations = {tuple(job[n] for n in swept) for job in jobs}
    is_grid = len(jobs) == len(combinations) == math.prod(len(columns[n]) for n in swept)
    if len(jobs) < 2 or not is_grid or any("=" not in value for n in swept for value in columns[n]):
        yield from jobs
        return
    words = []
    for values in columns:
        key, _, first = values[0].partition("=")
        if key == "output" and len(values) > 1:
            first = first.rpartition("/")[0]
        elif len(values) > 1:
            first = ",".join(value.partition("=")[2] for value in values)
        words.append(f"{key}={first}" if "=" in values[0] else values[0])
    command = next((number for number, word in enumerate(words) if "=" in word), len(words))
    yield [*words[:command], "-m", *words[command:]]


def _without_sweep(words: Sequence[str]) -> list[str]:
    """Return a job's words without those that a sweep adds: its mode, and the trackers' names of its folder."""
    folder = PurePath(next((word for word in words if word.startswith("output=")), "").strip("'"))
    given = ("hydra.mode=RUN", f"tracker.group='{folder.parent.name}'", f"tracker.run_name='{folder.name}'")
    return [word for word in words if word not in given]


def _without_hydra_quotes(word: str) -> str:
    key, equals, value = word.partition("=")
    plain = PLAIN_IN_HYDRA.fullmatch(value)
    return f"{key}{equals}{plain[1] if plain else value}"


def _wrapped(words: Sequence[str]) -> str:
    lines = [""]
    for word in map(_quoted, words):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _quoted(word: str) -> str:
    """Quote a word as little as necessary, around its value only: `data.files='text/*'`."""
    if PLAIN_IN_SHELL.fullmatch(word):
        return word
    key, equals, value = word.partition("=")
    before = f"{key}{equals}"
    if not equals or not PLAIN_IN_SHELL.fullmatch(key):
        before, value = "", word
    if "'" not in value:
        return f"{before}'{value}'"
    return f'{before}"{value}"' if not re.search(r'["$`\\!]', value) else before + shlex.quote(value)
