"""The commit that a run directory records."""

import subprocess
from pathlib import Path

import pytest

from gptstar.training import run_directory


def test_the_commit_is_that_of_the_code_and_not_of_a_checkout_around_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "module.py").write_text("")
    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "module.py"))
    git("commit", "--allow-empty", "-m", "of another project")
    assert run_directory._commit() is None
    git("add", "module.py")
    git("commit", "-m", "our code")
    commit = run_directory._commit()
    assert commit is not None
    assert len(commit) == 12
    (tmp_path / "module.py").write_text("changed")
    assert run_directory._commit() == f"{commit}-dirty"
