"""Runs of several processes equal those of one process, whatever interrupts them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, make_dataclass
from pathlib import Path

import pytest
import torch

from gptstar.checkpoint.kept import newest_first
from gptstar.checkpoint.read import read
from gptstar.entry import compose, one_line_errors
from gptstar.launch import devices
from gptstar.launch import train as launch_train
from gptstar.training.hardware import Hardware
from support import ROOT
from support.runs import assert_same_run, damage, on, recorded, run_here, run_script

Overrides = Callable[..., list[str]]

ODD = ("model.n_vocab=301", "optimizer.gradient_clipping=0.5", "data.validation_tokens=1056")
"""Sizes that two ranks can't share evenly, and a gradient that is clipped at most steps."""


def train(overrides: list[str]) -> subprocess.CompletedProcess[str]:
    done = run_script("train.py", overrides)
    assert done.returncode == 0, done.stderr
    return done


def assert_agree(one: Path, other: Path) -> None:
    """Assert equal losses, gradients, validation, weights and optimizer state, within rounding."""
    for name in ("train/loss", "validation/loss", "gradient_norm"):
        ours, theirs = recorded(one, name), recorded(other, name)
        assert ours.keys() == theirs.keys()
        for step, value in ours.items():
            assert theirs[step] == pytest.approx(value, rel=1e-5), (name, step)
    mine, its = read(one / "last.ckpt"), read(other / "last.ckpt")
    torch.testing.assert_close(its.weights, mine.weights, rtol=0, atol=2e-5)
    torch.testing.assert_close(its.training.optimizer, mine.training.optimizer, rtol=1e-3, atol=1e-6)
    assert its.training.settings == mine.training.settings


def one_line(stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def alone(overrides: Overrides, tmp_path: Path) -> Callable[..., Path]:
    def run(*more: str) -> Path:
        run_here(overrides(*ODD, *more, output="alone"))
        return tmp_path / "alone"

    return run


@pytest.mark.slow
@pytest.mark.core
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_two_ranks_agree_with_one_for_fifty_steps_and_one_goes_on(
    strategy: str, overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    one = alone("total_steps=56")
    clipped = [norm for norm in recorded(one, "gradient_norm").values() if norm > 0.5]
    assert len(clipped) > 25
    done = train(overrides(*ODD, *on(2, strategy), "total_steps=50", "schedule.decay_until=56"))
    assert done.stdout.count("parameters, 50 steps") == 1  # one rank speaks
    assert (tmp_path / "run/last.ckpt").is_dir() == (strategy == "fsdp")
    run_here(overrides(*ODD, "total_steps=56"))
    assert_agree(one, tmp_path / "run")


PYTORCHS: tuple[str, ...] = ()
OF_FAST_SMALL = ("optimizer.heads_apart=true", "optimizer.adjust_lr=original", "optimizer.iterations=4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "dtype", "way"),
    [
        ("fsdp", "float32", OF_FAST_SMALL),
        ("fsdp", "float32", PYTORCHS),
        ("fsdp", "bfloat16", PYTORCHS),
        ("ddp", "float32", PYTORCHS),
        ("ddp", "bfloat16", OF_FAST_SMALL),
    ],
)
def test_muon_orthogonalises_the_whole_matrix_on_two_ranks(
    strategy: str, dtype: str, way: tuple[str, ...], overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    muon = ("optimizer=muon", "optimizer.learning_rate=0.01", f"optimizer.newton_schulz={dtype}", *way)
    one = alone(*muon, "total_steps=26")
    train(overrides(*ODD, *muon, *on(2, strategy), "total_steps=20", "schedule.decay_until=26"))
    run_here(overrides(*ODD, *muon, "total_steps=26"))
    for name in ("train/loss", "validation/loss"):
        ours, theirs = recorded(one, name), recorded(tmp_path / "run", name)
        assert theirs == pytest.approx(ours, rel=1e-5), name
    mine, its = read(one / "last.ckpt"), read(tmp_path / "run/last.ckpt")
    if dtype == "float32":  # bfloat16 makes coarse what is rounded otherwise, so weights wander apart, losses don't
        torch.testing.assert_close(its.weights, mine.weights, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_two_compiled_ranks_agree_with_one_that_is_not(
    strategy: str, checkpointing: str, overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    one = alone("total_steps=12", "hardware.attention=bias")
    compiled = ("hardware.compile=always", f"hardware.activation_checkpointing={checkpointing}")
    train(overrides(*ODD, *on(2, strategy), *compiled, "hardware.attention=bias", "total_steps=12"))
    for name in ("train/loss", "validation/loss", "gradient_norm"):
        ours, theirs = recorded(one, name), recorded(tmp_path / "run", name)
        assert theirs == pytest.approx(ours, rel=1e-4), name


@pytest.mark.slow
def test_moments_in_8_bits_are_alike_on_two_ranks(
    overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    pytest.importorskip("bitsandbytes")
    in_8_bits = ("optimizer=adamw_8bit", "model.d_model=45")  # matrices of more than 4,096 weights
    one = alone(*in_8_bits, "total_steps=20")
    train(overrides(*ODD, *in_8_bits, *on(2, "ddp"), "total_steps=14", "schedule.decay_until=20"))
    run_here(overrides(*ODD, *in_8_bits, "total_steps=20"))
    ours, theirs = recorded(one), recorded(tmp_path / "run")
    # A sum in another order rounds some moments to the next of 256 values.
    assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.slow
def test_a_run_goes_on_at_other_numbers_of_ranks(
    overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    """Resume a sharded run unsharded, and sharded again: FSDP by 2, one process, FSDP by 2, DDP by 4."""
    one = alone("total_steps=24")
    for steps, places in ((6, on(2, "fsdp")), (11, on(1, "cpu")), (17, on(2, "fsdp")), (24, on(4, "ddp"))):
        train(overrides(*ODD, *places, f"total_steps={steps}", "schedule.decay_until=24", "validate_every=100"))
    ours, theirs = recorded(one, "train/loss"), recorded(tmp_path / "run", "train/loss")
    assert list(theirs) == list(ours)
    assert all(theirs[step] == pytest.approx(loss, rel=1e-5) for step, loss in ours.items())
    torch.testing.assert_close(
        read(tmp_path / "run/last.ckpt").weights, read(one / "last.ckpt").weights, rtol=0, atol=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_gone_on_from(
    how: str, overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    one = alone("total_steps=16", "validate_every=100")
    more = [*ODD, *on(2, "fsdp"), "schedule.decay_until=16", "validate_every=100"]
    train(overrides(*more, "total_steps=12"))
    newest, before = newest_first(tmp_path / "run")[:2]
    part = newest / "__1_0.distcp"
    if how == "missing":
        part.unlink()
    else:
        damage(part, how)
    done = train(overrides(*more, "total_steps=16"))
    said = " ".join(done.stdout.split())
    assert re.search(rf"warning: \S*{newest.name}\b[^;]*__1_0\.distcp[^;]*; trying {before.name}", said), said
    assert "at step 10 of 16" in said
    assert_agree(one, tmp_path / "run")


class Running:
    """A `train.py` process in the background, with the processes of its ranks."""

    def __init__(self, overrides: list[str], folder: Path) -> None:
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._metrics = folder / "metrics.csv"

    def reach(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while not (self._metrics.exists() and f"\n{step}," in self._metrics.read_text()):
            assert self._process.poll() is None, self._process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        pid = self._process.pid
        os.kill(pid if rank is None else self.ranks()[rank], number)

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank."""
        pid = self._process.pid
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        known = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
        found = {child: [word for word in words if word.startswith(b"RANK=")] for child, words in known.items()}
        return {int(words[0][5:]): child for child, words in found.items() if words}

    def end(self) -> tuple[int, float, str]:
        """Return the exit status, the seconds until then, and stderr."""
        began = time.monotonic()
        _, errors = self._process.communicate(timeout=60)
        return self._process.returncode, time.monotonic() - began, errors


FOREVER = ("total_steps=100000", "schedule.decay_until=1000", "validate_every=100000")


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_run_down_and_is_named(overrides: Overrides, tmp_path: Path) -> None:
    running = Running(overrides(*FOREVER, *on(2, "ddp")), tmp_path / "run")
    running.reach(12)
    running.send(signal.SIGKILL, rank=1)
    status, seconds, errors = running.end()
    assert status == 1
    assert seconds < 15
    assert "error: rank 1 of 2 died (SIGKILL)" in errors
    assert all(line.startswith("error: rank ") for line in errors.strip().splitlines()), errors
    assert read(tmp_path / "run/last.ckpt").training.step >= 10


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, None), (signal.SIGTERM, 1), (signal.SIGUSR2, None)])
def test_a_signal_saves_and_ends_all_ranks(
    number: signal.Signals, rank: int | None, overrides: Overrides, tmp_path: Path
) -> None:
    running = Running(overrides(*FOREVER, "checkpoint_every=100000", *on(2, "fsdp")), tmp_path / "run")
    running.reach(12)
    running.send(number, rank)
    status, seconds, errors = running.end()
    assert status == 128 + number, errors
    assert seconds < 15
    assert re.search(rf"{number.name} at step \d+ of 100000: saved", errors)
    step = read(tmp_path / "run/last.ckpt").training.step
    assert step == max(recorded(tmp_path / "run", "train/loss"))


@pytest.mark.slow
def test_ranks_end_with_the_launcher(overrides: Overrides, tmp_path: Path) -> None:
    running = Running(overrides(*FOREVER, *on(2, "ddp")), tmp_path / "run")
    running.reach(12)
    ranks = running.ranks()
    running.send(signal.SIGKILL)
    running.end()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    saved = read(tmp_path / "run/last.ckpt").training.step
    assert saved == max(recorded(tmp_path / "run", "train/loss"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stop", "skip"])
def test_what_is_not_finite_on_one_rank_concerns_all(what: str, overrides: Overrides, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN_ON_RANK_1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    words = overrides(*on(2, "fsdp"), f"on_nonfinite={what}", "checkpoint_every=1", "checkpoint_keep=20")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False, timeout=120)
    if what == "skip":
        assert done.returncode == 0, done.stderr
        assert recorded(tmp_path / "run", "skipped") == {13: 1.0}
        before, after = (read(tmp_path / f"run/step-0000{step}.ckpt").weights for step in (12, 13))
        torch.testing.assert_close(before, after, rtol=0, atol=0)
    else:
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(said) == 1, done.stderr
        assert "step 13: the loss is nan" in said[0]
        assert read(tmp_path / "run/last.ckpt").training.step == 12


BROKEN_ON_RANK_1 = """
import math
import os
import sys

from support.runs import run_here
from gptstar.training.module import LanguageModelling

step = LanguageModelling.training_step


def broken(self, windows, batch_idx):
    loss = step(self, windows, batch_idx)
    if self.global_step == 12 and os.environ["RANK"] == "1":
        self._step_loss += math.nan
        return loss * math.nan
    return loss


LanguageModelling.training_step = broken
run_here(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_nodes_agree_with_one_process(overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]) -> None:
    one = alone("total_steps=50")
    words = overrides(*ODD, *on(1, "multi_node"), "hardware.nodes=2", "hardware.micro_batch_size=2", "total_steps=50")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    nodes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words],
            env=os.environ | place | {"NODE_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=120)
        assert node.returncode == 0, errors
    assert_agree(one, tmp_path / "run")


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_own_ranks_and_directory(overrides: Overrides, tmp_path: Path) -> None:
    train(["-m", *overrides(*on(2, "ddp"), "seed=0,1", "total_steps=6")])
    folders = sorted(path for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["seed-0", "seed-1"]
    assert [read(folder / "last.ckpt").training.settings["seed"] for folder in folders] == [0, 1]
    assert recorded(folders[0], "train/loss") != recorded(folders[1], "train/loss")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_compiled_model_agrees(
    strategy: str, overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]
) -> None:
    one = alone("total_steps=12", "validate_every=6")
    train(overrides(*ODD, *on(2, strategy), "total_steps=12", "validate_every=6", "hardware.compile=always"))
    assert_agree(one, tmp_path / "run")


@pytest.mark.slow
def test_half_precision_weights_in_parts(overrides: Overrides, tmp_path: Path, alone: Callable[..., Path]) -> None:
    """The master stays in float32: a resumed run equals an uninterrupted one, and learns equally well."""
    one = alone("total_steps=24")
    more = [*ODD, *on(2, "fsdp"), "hardware.precision=bf16_weights", "schedule.decay_until=24"]
    train(overrides(*more, "total_steps=24", output="whole"))
    for steps in (12, 24):
        train(overrides(*more, f"total_steps={steps}"))
    ours, whole, stopped = (recorded(each, "train/loss") for each in (one, tmp_path / "whole", tmp_path / "run"))
    assert stopped == whole
    assert all(whole[step] == pytest.approx(loss, rel=0.02) for step, loss in ours.items())
    assert {tensor.dtype for tensor in read(tmp_path / "run/last.ckpt").weights.values()} == {torch.float32}


@pytest.mark.slow
def test_runs_at_the_same_time_do_not_meet(overrides: Overrides, tmp_path: Path) -> None:
    """Each run has its own directory and port, and one prepares the text for both."""
    words = [overrides(*on(2, "ddp"), "data.validation_tokens=2048", output=name) for name in ("a", "b")]
    train(overrides(*on(2, "ddp"), "data.validation_tokens=2048", output="alone"))
    command = [sys.executable, str(ROOT / "train.py")]
    runs = [
        subprocess.Popen([*command, *each], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in words
    ]
    for run in runs:
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors
    for name in ("a", "b"):
        assert_same_run(tmp_path / "alone", tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="to have a disk that fills up takes root")
@pytest.mark.parametrize(("ranks", "strategy"), [(1, "cpu"), (2, "fsdp")])
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(
    ranks: int, strategy: str, overrides: Overrides, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(tmp_path / "run")], check=True)
    try:
        done = run_script("train.py", overrides(*on(ranks, strategy), "checkpoint_keep=9", "checkpoint_every=2"))
        assert done.returncode == 1
        assert re.search(r"can't write \S+step-0000\d\d\.ckpt .*(disk full|No space left)", one_line(done.stderr))
        kept = newest_first(tmp_path / "run")
        assert kept
        assert all(read(path).training for path in kept)
    finally:
        subprocess.run(["umount", str(tmp_path / "run")], check=True)


@pytest.mark.slow
def test_a_refusal_is_one_line_of_one_rank(overrides: Overrides, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").touch()
    done = run_script("train.py", overrides(*on(2, "ddp")))
    assert done.returncode == 1
    assert "holds files that are not a run's" in one_line(done.stderr)


def test_the_launcher_is_given_what_the_installed_pytorch_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = Hardware(accelerator="cpu", devices=3)
    newer = {"signals_to_handle": devices.FORWARDED_SIGNALS, "shutdown_timeout": devices.SECONDS_TO_SAVE}
    options = vars(devices._how(hardware))
    assert {name: value for name, value in options.items() if name in newer}.items() <= newer.items()
    assert options["nproc_per_node"] == 3

    def accepting(names: Iterable[str]) -> type:
        return make_dataclass("LaunchConfig", [(name, object, None) for name in names])

    older = [each.name for each in fields(devices.LaunchConfig) if each.name not in newer]
    monkeypatch.setattr(devices, "LaunchConfig", accepting(older))  # as PyTorch 2.8's
    assert not newer.keys() & vars(devices._how(hardware)).keys()
    monkeypatch.setattr(devices, "LaunchConfig", accepting([*older, *newer]))  # as PyTorch 2.12's
    assert newer.items() <= vars(devices._how(hardware)).items()


def test_several_nodes_are_not_started_from_one(overrides: Overrides, refusal: Callable[..., str]) -> None:
    words = overrides("hardware=multi_node", "hardware.devices=1", "hardware.accelerator=cpu")

    def run() -> None:
        with one_line_errors():
            launch_train.run(compose("train", words))

    assert "give the same command on each node, with MASTER_ADDR=FIRST_NODE" in refusal(run)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=4 in the environment, but hardware names"),
        ({"WORLD_SIZE": "abc", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=abc is not a number"),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "WORLD_SIZE is set, but RANK is not"),
    ],
)
def test_variables_that_a_launcher_left_are_refused_before_ranks_meet(
    variables: dict[str, str], said: str, overrides: Overrides, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", **variables}.items():
        monkeypatch.setenv(name, value)
    assert said in refusal(run_here, overrides())


AVERAGED = (*ODD, "averaging=ema", "averaging.decay=0.8")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "float32"), ("fsdp", "float32"), ("fsdp", "bf16_weights")])
def test_two_ranks_have_the_average_of_one_which_goes_on_with_it(
    strategy: str, precision: str, overrides: Overrides, tmp_path: Path
) -> None:
    words = (*AVERAGED, f"hardware.precision={precision}")
    run_here(overrides(*words, "total_steps=26", output="alone"))
    train(
        overrides(
            *words, *on(2, strategy), f"hardware.precision={precision}", "total_steps=20", "schedule.decay_until=26"
        )
    )
    run_here(overrides(*words, "total_steps=26"))
    atol, rel = (2e-5, 1e-5) if precision == "float32" else (2e-2, 2e-2)
    one, two = (read(tmp_path / name / "last.ckpt") for name in ("alone", "run"))
    torch.testing.assert_close(two.averaged, one.averaged, rtol=0, atol=atol)
    ours, theirs = (recorded(tmp_path / name, "averaged/loss") for name in ("alone", "run"))
    assert ours.keys() == {10, 20, 26}
    assert theirs == pytest.approx(ours, rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_that_are_killed_have_the_same_average(strategy: str, overrides: Overrides, tmp_path: Path) -> None:
    words = [*AVERAGED, *on(2, strategy), "total_steps=40"]
    train(overrides(*words, output="whole"))
    for step in (12, 27):
        running = Running(overrides(*words), tmp_path / "run")
        running.reach(step)
        running.send(signal.SIGKILL, rank=1)
        running.end()
    train(overrides(*words))
    whole, killed = (read(tmp_path / name / "last.ckpt") for name in ("whole", "run"))
    assert (tmp_path / "run/last.ckpt").is_dir() == (strategy == "fsdp")
    torch.testing.assert_close(killed.averaged, whole.averaged, rtol=0, atol=0)
    torch.testing.assert_close(killed.weights, whole.weights, rtol=0, atol=0)
    for name in ("averaged/loss", "validation/loss", "train/loss"):
        assert recorded(tmp_path / "run", name) == recorded(tmp_path / "whole", name)
    for path in ("run", "whole"):  # read in parts and as a whole
        assert read(tmp_path / f"{path}/last.ckpt:averaged").weights.keys() == whole.weights.keys()
