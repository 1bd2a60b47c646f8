"""Runs: in this process, as a script, and what they leave."""

import contextlib
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from omegaconf import OmegaConf

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.read import read
from gptstar.config import EvaluateConfig, TrainConfig
from gptstar.entry import compose, one_line_errors
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.run import train
from support import ROOT

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


def recorded(folder: Path, name: str = "train/loss") -> dict[int, float]:
    """What a run recorded under a name, by step."""
    return {int(row["step"]): row[name] for row in read_metrics(folder) if name in row}


def run_here(overrides: Sequence[str], *, draw: bool = False, config_dir: Path | None = None) -> None:
    """What `train.py` does, in this process; only with `draw` the picture too, a quarter of a small run's time."""
    drawing = contextlib.nullcontext() if draw else patch("gptstar.training.report.plot_loss")
    with drawing, one_line_errors():
        composed = compose("train", overrides, config_dir)
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
    torch.testing.assert_close(first.averaged, second.averaged, rtol=0, atol=0)
    return first


def run_script_here(script: str, *words: str) -> None:
    """A script of the project, in this process: enough for what it shows and what it refuses."""
    with patch.object(sys, "argv", [script, *words]):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def evaluate_here(*overrides: str) -> None:
    """What `evaluate.py` does, in this process."""
    from gptstar.launch.evaluate import run

    with one_line_errors():
        run(EvaluateConfig.parse(compose("evaluate", overrides)).check_here())


def run_script(
    script: str, overrides: Sequence[str], *, timeout: float = 300, **options: object
) -> subprocess.CompletedProcess[str]:
    """A script of the project as a user would run it."""
    command = [sys.executable, str(ROOT / script), *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, **options)


def assert_same_run(one: Path, other: Path) -> None:
    """Bitwise the same losses, weights and optimizer."""
    assert [row["step"] for row in read_metrics(one)] == [row["step"] for row in read_metrics(other)]
    assert recorded(one) == recorded(other)
    assert recorded(one, "validation/loss") == recorded(other, "validation/loss")
    for name in ("last.ckpt", "best.ckpt"):
        first, second = read(one / name), read(other / name)
        assert first.training.step == second.training.step
        assert first.training.best_loss == second.training.best_loss
        torch.testing.assert_close(first.weights, second.weights, rtol=0, atol=0)
        torch.testing.assert_close(first.training.optimizer, second.training.optimizer, rtol=0, atol=0)
        torch.testing.assert_close(first.averaged, second.averaged, rtol=0, atol=0)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-100] if how == "cut" else data)


def on(ranks: int, strategy: str) -> list[str]:
    """Overrides for so many processes on a CPU."""
    size = f"hardware.micro_batch_size={4 // ranks}"
    return [f"hardware={strategy}", f"hardware.devices={ranks}", "hardware.accelerator=cpu", size]


def started(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> Path:
    """The first file that is there and says something."""
    while True:
        if found := [path for path in folder.glob(pattern) if path.stat().st_size]:
            return found[0]
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
