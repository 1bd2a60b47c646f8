"""Shared by the tests: one thread a process, a cache of their own, small text, and overrides for small runs."""

import functools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import SHARED

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, which happens in fixtures and test modules only


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache, shared by all workers of one test session and by nothing else."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    return folder / "cache"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared data is not beside this checkout")
    return SHARED


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def transformers_offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers asks no Hub, and keeps modelling files where nobody else finds them."""
    pytest.importorskip("transformers", reason="transformers is not installed: it is of the extra `dev` alone")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        from transformers import dynamic_module_utils

        # Its variable counts at import alone, which another test may have caused before.
        environment.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        environment.syspath_prepend(dynamic_module_utils.HF_MODULES_CACHE)
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A glob of two small corpora: an epoch of 56 steps or so of a `SMALL` run."""
    from support.text import sentences

    folder = tmp_path_factory.mktemp("text")
    for seed, corpus in enumerate(("alpha", "beta")):
        (folder / corpus).mkdir()
        lines = [json.dumps({"text": each}) for each in sentences(40, 120, seed)]
        (folder / corpus / "part.jsonl").write_text("\n".join(lines) + "\n")
    return f"{folder}/*/*.jsonl"


@pytest.fixture
def overrides(text: str, tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides of a small run on small text in a folder of its own, with others added."""
    from support.runs import SMALL

    def build(*more: str, output: str = "run") -> list[str]:
        return [*SMALL, "data=local", f"data.files={text}", f"output={tmp_path / output}", *more]

    return build


@pytest.fixture(scope="session")
def trained_once(text: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a small run with these overrides, trained once: copy it to change it."""
    from support.runs import SMALL, run_here

    @functools.cache
    def folder(*more: str) -> Path:
        output = tmp_path_factory.mktemp("trained") / "run"
        run_here([*SMALL, "data=local", f"data.files={text}", f"output={output}", *more])
        return output

    return folder


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run something that has to end in a non-zero exit and exactly one line on stderr; that line."""

    def refused(action: Callable[..., object], *args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            action(*args)
        assert stopped.value.code not in (0, None)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return refused
