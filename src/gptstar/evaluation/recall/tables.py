"""Recall as tables, for the terminal and as Markdown."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from gptstar.evaluation.recall.config import LEARNED
from gptstar.evaluation.recall.curve import Cell, RecallCurve, cells_of
from gptstar.evaluation.tables import UNDEFINED, markdown_table
from gptstar.terminal import in_markdown

TESTS = {"pairs": "associative recall", "passkey": "passkey"}


def verdict(curve: RecallCurve) -> str:
    """Say whether a model learned to recall, and what a guess would score."""
    chance = 100 * curve.lengths[0].chance
    guess = "a value of the text" if curve.test == "pairs" else "a word"
    said = "learned" if curve.learned else "did not learn"
    return (
        f"{curve.name} {said} ({100 * LEARNED:.0f} % at {curve.trained_at:,} tokens is the mark). A guess of {guess} "
        f"is right in {chance:.3g} %, one of all {curve.candidates} candidates in {100 / curve.candidates:.3g} %."
    )


def depth_table(curve: RecallCurve) -> Table:
    """Return a table of one model's percentage of right answers at each length and depth, for the terminal."""
    table = Table(title=Text(f"{curve.name}: {TESTS[curve.test]}, % right by depth, 1: next to the query"))
    for column in ("context", "×", *_depths(curve), "all", "95 % interval"):
        table.add_column(column, justify="right")
    for row in _depth_rows(curve):
        table.add_row(*row)
    return table


def load_table(curve: RecallCurve) -> Table:
    """Return a table of one model's percentage of right answers at each load, for the terminal."""
    table = Table(title=Text(f"{curve.name}: {_load_title(curve)}"))
    for column in LOAD_COLUMNS:
        table.add_column(column, justify="right")
    for row in _load_rows(curve):
        table.add_row(*row)
    return table


def recall_markdown(curves: Sequence[RecallCurve], head: Sequence[str]) -> str:
    """Return Markdown with all models of a study, after the lines of `head`."""
    lines = ["# Recall", "", *head]
    for curve in curves:
        lines += ["", f"## {curve.name}: {TESTS[curve.test]}", "", verdict(curve), "", DEPTHS, ""]
        lines += markdown_table(["context", "×", *_depths(curve), "all", "95 % interval"], _depth_rows(curve))
        if curve.loads:
            lines += ["", f"{_load_title(curve)}:", "", *markdown_table(LOAD_COLUMNS, _load_rows(curve))]
    return in_markdown("\n".join(lines)) + "\n"


DEPTHS = "% right by depth of the pair or sentence that is asked for: 0 at the beginning, 1 next to the query."
LOAD_COLUMNS = ("pairs", "% right", "95 % interval", "chance")


def _load_title(curve: RecallCurve) -> str:
    return f"% right by number of pairs, at {curve.loads[0].context_length:,} tokens"


def _depths(curve: RecallCurve) -> list[str]:
    return [f"{cell.depth:g}" for cell in cells_of(curve, curve.trained_at)]


def _depth_rows(curve: RecallCurve) -> Iterator[list[str]]:
    for whole in curve.lengths:
        cells = [_percent(cell) for cell in cells_of(curve, whole.context_length)]
        multiple = f"{whole.context_length / curve.trained_at:g}"
        yield [f"{whole.context_length:,}", multiple, *cells, _percent(whole), _interval(whole)]


def _load_rows(curve: RecallCurve) -> Iterator[list[str]]:
    for cell in curve.loads:
        yield [f"{cell.pairs}", _percent(cell), _interval(cell), f"{100 * cell.chance:.1f}"]


def _percent(cell: Cell) -> str:
    return UNDEFINED if cell.accuracy is None else f"{100 * cell.accuracy.value:.1f}"


def _interval(cell: Cell) -> str:
    return "" if cell.accuracy is None else f"{100 * cell.accuracy.low:.1f}–{100 * cell.accuracy.high:.1f}"
