"""A report of any set of runs: one HTML file with everything in it, and the same in Markdown."""

import base64
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from gptstar import __version__
from gptstar.evaluation.tables import markdown_table
from gptstar.results.sections import Section, sections
from gptstar.terminal import in_markdown, plain


def write_report(
    paths: Sequence[Path], output: Path, title: str | None = None, against: str | None = None
) -> list[Path]:
    """Write `report.html`, and `report.md` with its pictures beside it; return their paths.

    Args:
        paths: run directories, or folders of such.
        against: the level that others are compared with, in factors that have it; else each factor's first.

    Raises:
        ConfigError: there is no run; or no factor has the level.
    """
    contents = list(sections(paths, against))
    output.mkdir(parents=True, exist_ok=True)
    title = title or ", ".join(path.resolve().name for path in paths)
    environment = Environment(
        loader=PackageLoader("gptstar.results"),
        autoescape=select_autoescape(),
        finalize=lambda value: plain(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": _data_address, "cell": _cell, "align": _align}
    page = environment.get_template("report.html").render(
        title=title, sections=contents, version=__version__, date=datetime.now(UTC).strftime("%Y-%m-%d")
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    (output / "report.md").write_text(_markdown(title, contents, output), encoding="utf-8")
    return [output / "report.html", output / "report.md"]


def _data_address(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _markdown(title: str, contents: Sequence[Section], folder: Path) -> str:
    parts = [in_markdown(f"# {title}")]
    for number, section in enumerate(contents, start=1):
        parts += map(in_markdown, [f"## {section.heading}", *([section.text] if section.text else [])])
        if section.picture is not None:
            name = f"report-{number}.png"
            section.picture.savefig(folder / name)
            parts.append(f"![{in_markdown(section.heading)}]({name})")
        if section.table is not None:
            header, *rows = (
                [in_markdown(_cell(value)) for value in row]
                for row in (section.table.columns, *section.table.itertuples(index=False))
            )
            parts.append("\n".join(markdown_table(header, rows, n_left=len(header))))
        if section.commands:
            commands = plain("\n".join(section.commands))
            fence = "`" * (1 + max(2, *map(len, re.findall("`+", commands)), 0))
            parts.append(f"{fence}bash\n{commands}\n{fence}")
    return "\n\n".join(parts) + "\n"


def _align(table: pd.DataFrame, column: int) -> Markup:
    return Markup(' class="number"' if pd.api.types.is_numeric_dtype(table.dtypes.iloc[column]) else "")


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10000 else str(value)
