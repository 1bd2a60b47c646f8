"""Shared by the tests: one thread a process, a cache of their own, small text, and runs in this process."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer
from omegaconf import OmegaConf

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.entry import compose, one_line_errors
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.run import train

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

SMALL = (
    "model.n_layers=2",
    "model.d_model=24",
    "model.n_heads=3",
    "model.n_vocab=300",
    "data.context_length=32",
    "data.block_tokens=64",
    "data.validation_tokens=1024",
    "hardware=cpu",
    "hardware.precision=float32",
    "hardware.micro_batch_size=4",
    "batch_tokens=256",
    "total_steps=24",
    "checkpoint_every=5",
    "validate_every=10",
    "log_every=1",
    "schedule.warmup_steps=3",
    "report=false",
)
"""A run of seconds: 3 heads, so that ALiBi's interleaving is in it; two micro-batches a step."""


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
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        from transformers import dynamic_module_utils

        # Its variable counts at import alone, which another test may have caused before.
        environment.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        environment.syspath_prepend(dynamic_module_utils.HF_MODULES_CACHE)
        yield


class Server(ThreadedMotoServer):
    """A store that can be switched off; it keeps what it holds."""

    def stop(self) -> None:
        super().stop()
        assert self._server is not None
        self._port = self._server.server_address[1]
        self._server.server_close()


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """A local S3, which `s3://` finds."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def sentences(n_documents: int, words: int, seed: int) -> list[str]:
    """Documents of made-up English: a skewed vocabulary, so that there is something to learn."""
    random = np.random.default_rng(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    vocabulary = [a + b for a in syllables[::7] for b in syllables[::3]]
    weights = 1.0 / np.arange(1, len(vocabulary) + 1)
    return [" ".join(random.choice(vocabulary, words, p=weights / weights.sum())) for _ in range(n_documents)]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A glob of two small corpora: an epoch of 56 steps or so of a `SMALL` run."""
    folder = tmp_path_factory.mktemp("text")
    for seed, corpus in enumerate(("alpha", "beta")):
        (folder / corpus).mkdir()
        lines = [json.dumps({"text": each}) for each in sentences(40, 120, seed)]
        (folder / corpus / "part.jsonl").write_text("\n".join(lines) + "\n")
    return f"{folder}/*/*.jsonl"


@pytest.fixture
def overrides(text: str, tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides of a small run on small text in a folder of its own, with others added."""

    def build(*more: str, output: str = "run") -> list[str]:
        return [*SMALL, "data=local", f"data.files={text}", f"output={tmp_path / output}", *more]

    return build


def recorded(folder: Path, name: str = "train/loss") -> dict[int, float]:
    """What a run recorded under a name, by step."""
    return {int(row["step"]): row[name] for row in read_metrics(folder) if name in row}


def run_here(overrides: Sequence[str]) -> None:
    """What `train.py` does, in this process."""
    with one_line_errors():
        composed = compose("train", overrides)
        config = TrainConfig.parse(composed).check_here()
        train(config.recipe, config.hardware, config.record, OmegaConf.to_yaml(composed, resolve=True))


def assert_goes_on_bitwise(overrides: Callable[..., list[str]], tmp_path: Path, *words: str) -> Checkpoint:
    """A run that stops on the way and goes on is the one that did not stop; what it ends with."""
    run_here(overrides(*words, "total_steps=20", output="whole"))
    run_here(overrides(*words, "total_steps=11", "schedule.decay_until=20"))
    run_here(overrides(*words, "total_steps=20"))
    assert recorded(tmp_path / "whole") == recorded(tmp_path / "run")
    first, second = read(tmp_path / "whole/last.ckpt"), read(tmp_path / "run/last.ckpt")
    torch.testing.assert_close(first.weights, second.weights, rtol=0, atol=0)
    torch.testing.assert_close(first.training.optimizer, second.training.optimizer, rtol=0, atol=0)
    return first


def run_script(
    script: str, overrides: Sequence[str], *, timeout: float = 300, **options: object
) -> subprocess.CompletedProcess[str]:
    """A script of the project as a user would run it."""
    command = [sys.executable, str(ROOT / script), *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, **options)


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
