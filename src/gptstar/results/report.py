"""A report of any set of runs: one HTML file with everything in it, and the same in Markdown."""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from gptstar import __version__
from gptstar.evaluation.tables import markdown_table
from gptstar.plots.style import Figure, save, to_svg
from gptstar.results.loaded import Loaded
from gptstar.results.section import Section
from gptstar.results.sections import sections
from gptstar.terminal import in_markdown, plain

MOST_DIGITS = 6
"""Digits of a number in a table."""


def write_report(found: Loaded, output: Path, title: str | None = None, against: str | None = None) -> list[Path]:
    """Write `report.html`, and `report.md` with its pictures beside it; return their paths.

    Args:
        found: run directories, or folders of such.
        against: the level that others are compared with, in factors that have it; else each factor's first.

    Raises:
        ConfigError: there is no run; or no factor has the level.
    """
    contents = list(sections(found, against))
    output.mkdir(parents=True, exist_ok=True)
    title = title or ", ".join(path.resolve().name for path in found.paths)
    environment = Environment(
        loader=PackageLoader("gptstar.results"),
        autoescape=select_autoescape(),
        finalize=lambda value: plain(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": _data_address, "cells": _cells, "align": _align, "summary": summary}
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
    for number, section in enumerate(contents, start=1):
        parts += map(in_markdown, [f"## {section.heading}", *([section.text] if section.text else [])])
        if section.points:
            parts.append("\n".join(f"- {in_markdown(point)}" for point in section.points))
        if section.picture is not None:
            name = f"report-{number}.png"
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
    """What a reader opens: how much there is of a long section."""
    if section.table is not None:
        return f"{len(section.table)} lines"
    return f"{len(section.commands)} commands"


def _align(table: pd.DataFrame, column: int) -> Markup:
    return Markup(' class="number"' if pd.api.types.is_numeric_dtype(table.dtypes.iloc[column]) else "")


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """The cells of a table as text, line by line; numbers with the digits in which those of a column differ."""
    columns = [_column(list(table.iloc[:, number])) for number in range(table.shape[1])]
    return [list(line) for line in zip(*columns, strict=True)]


def _column(values: Sequence[object]) -> list[str]:
    numbers = {float(f"{each:.{MOST_DIGITS}g}") for each in values if isinstance(each, float) and each == each}
    digits = next(
        (n for n in range(4, MOST_DIGITS) if len({f"{each:.{n}g}" for each in numbers}) == len(numbers)), MOST_DIGITS
    )
    return [_cell(value, digits) for value in values]


def _cell(value: object, digits: int) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10000 else str(value)
