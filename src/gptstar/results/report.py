"""Reports on sets of runs: a self-contained HTML file, and the same in Markdown."""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup, escape

from gptstar import __version__
from gptstar.evaluation.tables import markdown_table
from gptstar.plots.style import Figure, save, to_svg
from gptstar.results.loaded import Loaded
from gptstar.results.section import Section
from gptstar.results.sections import sections
from gptstar.terminal import in_markdown, plain

MOST_DIGITS = 6
"""The most digits of a number in a table."""
MINUS = "\N{MINUS SIGN}"

DURATION = re.compile(r"(< )?[\d.,]+ (s|min|h|d|hours|days)")
UNBREAKABLE = re.compile(r"\bp [<=] (?=\d)|(?<=\d) (?=(?:%|×|s|min|h|d|GB)(?!\w))|× (?=\d)")
"""A pattern of spaces at which a browser must not break lines."""


def write_report(loaded: Loaded, output: Path, title: str | None = None, against: str | None = None) -> list[Path]:
    """Write `report.html`, and `report.md` with separate pictures; return their paths.

    Args:
        loaded: the runs and evaluations to report on.
        output: the folder to write to.
        title: the title of the report; by default the names of the paths.
        against: the reference level of factors that have it; other factors use their first level.

    Raises:
        ConfigError: there is no run, or no factor has the level.
    """
    contents = list(sections(loaded, against))
    output.mkdir(parents=True, exist_ok=True)
    title = title or ", ".join(path.resolve().name for path in loaded.paths)
    environment = Environment(
        loader=PackageLoader("gptstar.results"),
        autoescape=select_autoescape(),
        finalize=lambda value: plain(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "picture": _data_address,
        "cells": _cells,
        "align": _align,
        "summary": summary,
        "prose": _prose,
    }
    page = environment.get_template("report.html").render(
        title=title, sections=contents, version=__version__, date=datetime.now(UTC).strftime("%Y-%m-%d")
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    (output / "report.md").write_text(_markdown(title, contents, output), encoding="utf-8")
    return [output / "report.html", output / "report.md"]


def _data_address(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(to_svg(figure).encode()).decode()}"


def _markdown(title: str, contents: Sequence[Section], folder: Path) -> str:
    parts = [in_markdown(f"# {title}")]
    n_pictures = 0
    for section in contents:
        parts += map(in_markdown, [f"## {section.heading}", *([section.text] if section.text else [])])
        if section.points:
            parts.append("\n".join(f"- {in_markdown(point)}" for point in section.points))
        if section.picture is not None:
            n_pictures += 1
            name = f"report-{n_pictures}.png"
            save(section.picture, folder / name)
            parts.append(f"![{in_markdown(section.heading)}]({name})")
        long = []
        if section.table is not None:
            header = [in_markdown(str(column)) for column in section.table.columns]
            rows = [[in_markdown(cell) for cell in row] for row in _cells(section.table)]
            long.append("\n".join(markdown_table(header, rows, n_left=len(header))))
        for command in map(plain, section.commands):
            fence = "`" * (1 + max(2, *map(len, re.findall("`+", command)), 0))
            long.append(f"{fence}bash\n{command}\n{fence}")
        if section.is_long:
            long = [f"<details>\n<summary>{summary(section)}</summary>", *long, "</details>"]
        parts += long
    return "\n\n".join(parts) + "\n"


def summary(section: Section) -> str:
    """Return the label of a folded section: the amount of its content."""
    if section.table is not None:
        return _count(len(section.table), "line")
    return _count(len(section.commands), "command")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _prose(text: str) -> Markup:
    """Convert a sentence to HTML: backticks become code, and numbers stay on one line with their unit."""
    text = UNBREAKABLE.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), plain(text))
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _align(table: pd.DataFrame, column: int) -> Markup:
    """Return the class of a cell in a column of numbers or durations, which are aligned to the right."""
    values = table.iloc[:, column]
    is_duration = len(values) > 0 and all(isinstance(each, str) and DURATION.fullmatch(each) for each in values)
    is_number = pd.api.types.is_numeric_dtype(values.dtype)
    return Markup(' class="number"' if is_number or is_duration else "")


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """Return the cells of a table as text, row by row; the numbers of a column get the digits in which they differ."""
    columns = [_column(list(table.iloc[:, number])) for number in range(table.shape[1])]
    return [list(line) for line in zip(*columns, strict=True)]


def _column(values: Sequence[object]) -> list[str]:
    numbers = {float(f"{each:.{MOST_DIGITS}g}") for each in values if isinstance(each, float) and each == each}
    digits = next(
        (n for n in range(4, MOST_DIGITS) if len({f"{each:.{n}g}" for each in numbers}) == len(numbers)), MOST_DIGITS
    )
    cells = [_cell(value, digits) for value in values]
    are_figures = [isinstance(value, float) and value == value for value in values]
    if numbers and all(1 <= abs(each) < 1000 for each in numbers):  # such as losses: the same number of decimals
        shown = list(zip(cells, are_figures, strict=True))
        decimals = max(len(cell.partition(".")[2]) for cell, is_figure in shown if is_figure)
        cells = [f"{float(cell):.{decimals}f}" if is_figure else cell for cell, is_figure in shown]
    return [re.sub("^-", MINUS, cell) if is_one else cell for cell, is_one in zip(cells, are_figures, strict=True)]


def _cell(value: object, digits: int) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10000 else str(value)
