"""The reference pages are those that the code gives, they are complete, and the site has no dead link."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from generator import configuration, pages
from generator.configuration import built_in
from generator.docstrings import parse
from gptstar.choices import Choices
from gptstar.config import EvaluateConfig, TrainConfig
from gptstar.data.text.sources import SOURCES
from gptstar.keys import valid_keys
from gptstar.model.blocks import BLOCKS
from gptstar.model.positions import POSITIONS
from gptstar.training.averaging import AVERAGING
from gptstar.training.optimizers import OPTIMIZERS
from gptstar.training.schedules import SCHEDULES
from support import ROOT

REGISTRIES: tuple[Choices[Any], ...] = (POSITIONS, BLOCKS, OPTIMIZERS, SCHEDULES, AVERAGING, SOURCES)
REFERENCE = ROOT / "docs/reference"


def test_the_reference_is_that_of_the_code() -> None:
    written = pages.written()
    stale = [name for name, text in written.items() if (REFERENCE / name).read_text(encoding="utf-8") != text]
    assert not stale, f"docs/reference/{', '.join(stale)} is stale: run `make reference` or `python docs/generate.py`"
    assert {path.name for path in REFERENCE.iterdir()} == written.keys()


@pytest.mark.parametrize(("script", "cls"), [("train.py", TrainConfig), ("evaluate.py", EvaluateConfig)])
def test_the_reference_has_every_key_with_its_meaning(script: str, cls: type) -> None:
    rows = {row.key: row for section in configuration.all_sections()[script] for row in section.rows}
    of_plugins = [own for each in REGISTRIES for own in {*each.classes()} - {*built_in(each)} if is_dataclass(own)]
    plugins = {field.name for own in of_plugins for field in fields(own)}
    keys = {key for key in valid_keys(cls) if not key.endswith(".*") and key.rpartition(".")[2] not in plugins}
    assert keys <= rows.keys()
    silent = [key for key, row in rows.items() if not row.meaning.strip()]
    assert not silent, f"without a meaning in the `Attributes:` of their class: {', '.join(silent)}"


def test_types_ranges_and_defaults_are_in_words() -> None:
    rows = {row.key: row for section in configuration.all_sections()["train.py"] for row in section.rows}
    assert (rows["total_steps"].values, rows["total_steps"].default) == ("integer ≥ 1", "1000")
    assert (rows["optimizer.beta2"].values, rows["optimizer.beta2"].default) == ("number ≥ 0, < 1", "0.95")
    assert (rows["model.gelu"].values, rows["model.gelu"].default) == ("`exact`, `tanh`", "`exact`")
    assert rows["model.d_ff"].values == "integer ≥ 1 or null"
    assert rows["optimizer.momentum"].default == "0.95"  # of Muon, from its file
    assert rows["model.n_layers"].role.is_fixed
    assert not rows["log_every"].role.reopens


def test_a_docstring_is_taken_apart() -> None:
    parsed = parse(
        """Summary of
        two lines.

        More.

        Attributes:
            one, two: both,
                on two lines.
            three: it: has a colon.

        Raises:
            ValueError: never.

        Source: somebody, 2020.
        """
    )
    assert (parsed.summary, parsed.paragraphs[1]) == ("Summary of two lines.", "More.")
    assert parsed.sections["Attributes"] == {
        "one": "both, on two lines.",
        "two": "both, on two lines.",
        "three": "it: has a colon.",
    }
    assert parsed.sections["Raises"] == {"ValueError": "never."}
    assert parsed.sections["Source"] == {"": "somebody, 2020."}


def test_the_site_builds_without_a_warning_but_for_dead_links(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="sphinx is not installed: it is of the extra `docs` alone")
    pytest.importorskip("furo")
    for path in ROOT.iterdir():
        if path.name == "docs":
            shutil.copytree(path, tmp_path / "docs")
        elif not path.name.startswith(".") and path.name != "build":
            (tmp_path / path.name).symlink_to(path)
    page = tmp_path / "docs/howto/offline.md"
    page.write_text(page.read_text() + "\n[a](../data.md#nowhere) [b](nowhere.md) [c](../../nowhere.py)\n")
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2]
    words = re.search(r"python (-m sphinx .*)", recipe)
    assert words is not None
    command = [sys.executable, *words[1].split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert done.returncode != 0
    for dead in ("'nowhere'", "nowhere.md does not exist", "nowhere.py does not exist"):
        assert len([line for line in warnings if dead in line]) == 1
    others = [line for line in warnings if "nowhere" not in line]
    assert not others
    front = (tmp_path / "build/docs/index.html").read_text(encoding="utf-8")
    assert 'href="first_study.html"' in front
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', front)
