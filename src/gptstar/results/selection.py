"""Selection and sorting of runs by figures, settings and tags."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from gptstar.errors import ConfigError
from gptstar.keys import flatten
from gptstar.results.run import Run, labelled
from gptstar.results.sources import natural_key

FIGURES: dict[str, Callable[[Run], Any]] = {
    "state": lambda run: run.state,
    "step": lambda run: run.step,
    "tokens": lambda run: run.tokens,
    "loss": lambda run: run.validation_loss,
    "validation_loss": lambda run: run.validation_loss,
    "validation_bits_per_byte": lambda run: run.validation_bits_per_byte,
    "train_loss": lambda run: run.train_loss,
    "tokens_per_second": lambda run: run.tokens_per_second,
    "tok/s": lambda run: run.tokens_per_second,
    "tokens/s": lambda run: run.tokens_per_second,
    "hours": lambda run: run.hours,
    "time": lambda run: run.hours,
    "began": lambda run: run.began.timestamp(),
    "at": lambda run: run.at.timestamp(),
    "tags": lambda run: run.tags,
}
"""The columns that are not settings: losses in nats per token, `time` in hours, dates in seconds."""

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": eq,
    "!=": ne,
    "<=": le,
    ">=": ge,
    "<": lt,
    ">": gt,
    "=": eq,
}

EXAMPLES = "write KEY OP VALUE, such as 'loss < 4', 'model.d_model == 128' or 'state == finished'"


@dataclass(frozen=True)
class Condition:
    """A condition `KEY OP VALUE` on a figure, on a setting by its dotted key, or on tags."""

    key: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Parse a condition.

        Raises:
            ConfigError: the text is not a condition.
        """
        match = re.fullmatch(r"\s*([\w./-]+?)\s*(==|!=|<=|>=|<|>|=)\s*(\S.*?)\s*", text)
        if match is None:
            raise ConfigError(f"--where {text!r} is not a condition: {EXAMPLES}")
        value = match[3]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        condition = cls(match[1], match[2], value)
        if condition.operator in ("<", ">", "<=", ">=") and _number(value) is None:
            raise ConfigError(f"--where {text!r} compares with {value!r}, which is not a number: {EXAMPLES}")
        return condition

    def holds(self, value: Any) -> bool:
        """Whether the condition holds for a run's value; it never holds for a missing number."""
        compare, number = OPERATORS[self.operator], _number(self.value)
        if isinstance(value, tuple):
            return (self.value in value) == (self.operator != "!=")
        if number is not None and isinstance(value, int | float) and not isinstance(value, bool):
            return not math.isnan(value) and compare(value, number)
        if self.operator in ("<", ">", "<=", ">="):
            return False
        return compare(_text(value), self.value.lower())


def select(
    runs: Sequence[Run], conditions: Iterable[Condition] = (), tags: Iterable[str] = (), sort: str | None = None
) -> list[Run]:
    """Return the runs that satisfy every condition and have every tag, sorted by a column.

    Args:
        sort: a figure, a setting, or `run` for the name; a leading `-` sorts in descending order. Runs without a value
            come last.

    Raises:
        ConfigError: no run has the figure or setting; the message names the nearest.
    """
    conditions, tags = list(conditions), set(tags)
    settings = {id(run): flatten(run.config) for run in runs}

    @cache
    def getter(key: str) -> Callable[[Run], Any]:
        if key in FIGURES:
            return FIGURES[key]
        known = sorted({each for flat in settings.values() for each in flat})
        full = [key] if key in known else [each for each in known if each.endswith(f".{key}")]
        if len(full) == 1:
            return lambda run: settings[id(run)].get(full[0], math.nan)
        choices = full or get_close_matches(key, [*FIGURES, *known], 3, cutoff=0.5) or list(FIGURES)
        raise ConfigError(f"no run has {key}: choose from {', '.join(choices)}, or the dotted key of a setting")

    for condition in conditions:
        kept_by = getter(condition.key)
        runs = [run for run in runs if condition.holds(kept_by(run))]
    runs = [run for run in runs if tags <= set(run.tags)]
    if sort is None:
        return list(runs)
    key, down = sort.removeprefix("-"), sort.startswith("-")
    names = {id(run): name for name, run in labelled(runs).items()}
    value_of = (lambda run: names[id(run)]) if key == "run" else getter(key)
    present = [run for run in runs if not _is_missing(value_of(run))]
    numeric = all(isinstance(value_of(run), int | float) for run in present)
    present.sort(key=lambda run: value_of(run) if numeric else natural_key(_text(value_of(run))), reverse=down)
    return [*present, *(run for run in runs if _is_missing(value_of(run)))]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower()


def _number(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None
