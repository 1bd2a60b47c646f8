"""What the package declares: every import, versions that its users may have, and where it does not run."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gptstar
from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: required for name, required in PROJECT["optional-dependencies"].items() if name not in ("dev", "test")}
DISTRIBUTIONS = packages_distributions()
NOT_OURS = {"src/gptstar/checkpoint/huggingface/modeling_gptstar.py": {"transformers"}}
"""The modelling file is copied into exports, where transformers imports it; nothing here does."""


def requirement(name: str) -> Requirement:
    return next(each for each in map(Requirement, PROJECT["dependencies"]) if each.name == name)


def imported(path: Path) -> set[str]:
    """The packages that a file imports, at its top or within its functions, without Python's own and ours."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"gptstar"}


def undeclared(path: Path, declared: set[str]) -> set[str]:
    return {
        name
        for name in imported(path) - NOT_OURS.get(str(path.relative_to(ROOT)), set())
        if not declared & {canonicalize_name(each) for each in DISTRIBUTIONS.get(name, [name])}
    }


def test_every_import_is_declared() -> None:
    required = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    declared = {canonicalize_name(Requirement(each).name) for each in required}
    files = sorted((ROOT / "src").rglob("*.py"))
    assert {str(path): found for path in files if (found := undeclared(path, declared))} == {}
    status = ROOT / "src/gptstar/training/status.py"
    assert undeclared(status, declared - {"pyyaml"}) == {"yaml"}


def test_four_files_import_what_an_extra_installs() -> None:
    declared = {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]}
    files = sorted((ROOT / "src").rglob("*.py"))
    with_extras = {str(path.relative_to(ROOT / "src")) for path in files if undeclared(path, declared)}
    assert with_extras == {
        "gptstar/inference/demo/page.py",  # of demo
        "gptstar/launch/train.py",  # of slurm, within suppress(ImportError)
        "gptstar/training/optimizers/adamw_8bit.py",  # of 8bit
        "hydra_plugins/gptstar_search.py",  # of search
    }


@pytest.mark.parametrize(
    ("name", "admitted", "refused"),
    [
        ("torch", ["2.8.0", "2.13.0", "2.15.0"], ["2.7.1"]),
        ("lightning", ["2.5.1", "2.6.6", "2.6.9"], ["2.5.0", "2.6.2", "2.6.3", "2.7.0"]),
        ("wandb", ["0.19.0", "0.31.0"], ["0.18.7"]),
    ],
)
def test_versions_that_people_have_are_admitted(name: str, admitted: list[str], refused: list[str]) -> None:
    versions = requirement(name).specifier
    assert [version for version in [*admitted, *refused] if version in versions] == admitted


def test_pins_lie_in_their_ranges() -> None:
    required = [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ]
    ranges = {canonicalize_name(each.name): each.specifier for each in map(Requirement, required)}
    pins = [
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    ]
    pinned = {canonicalize_name(name): version for name, version in pins}
    assert [name for name, version in pinned.items() if name in ranges and version not in ranges[name]] == []
    assert {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]} <= pinned.keys()


def test_the_lowest_versions_are_those_of_the_ranges() -> None:
    command = [sys.executable, str(ROOT / ".ci/lowest.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    lowest = dict(line.split("==") for line in printed)
    assert lowest["torch"] == "2.8"
    assert lowest["fsspec"] == "2024.6"
    bounded = [each for each in map(Requirement, PROJECT["dependencies"]) if ">=" in str(each.specifier)]
    assert {each.name for each in bounded} <= lowest.keys()
    for each in bounded:
        assert lowest[each.name] in each.specifier


def test_the_pythons_are_those_that_ci_runs() -> None:
    classified = {word.rpartition(" ")[2] for word in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", word)}
    assert classified == {"3.11", "3.12", "3.13", "3.14"}
    run = set(re.findall(r'"(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text()))
    assert run == {"3.11", "3.13", "3.14"}


def test_a_citation_names_this_version_and_the_same_authors() -> None:
    from omegaconf import OmegaConf

    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert citation.version == gptstar.__version__
    assert citation.authors == PROJECT["authors"]
    assert citation.license == PROJECT["license"]


ON_WINDOWS = "import sys; sys.platform = 'win32'\n"


def test_windows_gets_one_line_that_names_wsl() -> None:
    command = [sys.executable, "-c", ON_WINDOWS + "import gptstar"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: gptstar runs on Linux and macOS: on Windows, install and run it in WSL (wsl --install)"
    ]


def test_who_catches_the_line_has_tracebacks_of_other_errors() -> None:
    code = ON_WINDOWS + "try:\n    import gptstar\nexcept ImportError:\n    1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr
