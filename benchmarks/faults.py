"""Kill runs repeatedly, and compare their final state with that of an undisturbed run, bit by bit.

    python benchmarks/faults.py                          # 30 kills -9 each of one process, DDP by 2 and FSDP2 by 2
    python benchmarks/faults.py --kills 6 --only fsdp

Kills come at random moments: within a step or between its micro-batches, while a checkpoint is written, in a
validation, at the end of an epoch, or right after a restart. With several ranks, one rank or the whole job is killed.
Prints a table for each, and exits with 1 if a run ended differently. Half an hour on two cores.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gptstar.checkpoint.read import read
from gptstar.training.metrics_csv import read_metrics

ROOT = Path(__file__).parents[1]
WAYS = {"one": ("cpu", 1), "ddp": ("ddp", 2), "fsdp": ("fsdp", 2)}
MOMENTS = ("step", "checkpoint", "validation", "epoch", "again")
STEPS_A_KILL, VALIDATE_EVERY, EPOCH = 14, 10, 38


COMPARED = ("step", "train/loss", "validation/loss", "gradient_norm")


def write_text(folder: Path) -> Path:
    """Write documents of made-up words, so that an epoch has `EPOCH` steps."""
    words = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    known = ["".join(words.choices(syllables, k=2)) for _ in range(400)]
    weights = [1 / rank for rank in range(1, len(known) + 1)]
    path = folder / "text.jsonl"
    documents = (" ".join(words.choices(known, weights, k=120)) for _ in range(60))
    path.write_text("".join(f'{{"text": "{document}"}}\n' for document in documents), encoding="utf-8")
    return path


def overrides(way: str, output: Path, text: Path, kills: int) -> list[str]:
    """Return the overrides of a run of about a minute, with dropout and four micro-batches per step and rank."""
    hardware, ranks = WAYS[way]
    return [
        *("model.n_layers=3", "model.d_model=96", "model.n_heads=3", "model.n_vocab=301", "model.dropout=0.1"),
        *("data=local", f"data.files={text}", "data.context_length=32", "data.block_tokens=64"),
        *("data.validation_tokens=2048", "data.validation_fraction=0.2", "batch_tokens=512"),
        *(f"hardware={hardware}", f"hardware.devices={ranks}", "hardware.accelerator=cpu"),
        *("hardware.precision=float32", f"hardware.micro_batch_size={4 // ranks}"),
        *(f"total_steps={STEPS_A_KILL * (kills + 3)}", "checkpoint_every=7", f"validate_every={VALIDATE_EVERY}"),
        *("log_every=1", "schedule.warmup_steps=3", "report=false", f"output={output}"),
    ]


class Job:
    """A `train.py` process in the background."""

    def __init__(self, words: list[str], folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._folder = folder

    @property
    def running(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def rows(self) -> list[str]:
        """The lines of metrics recorded so far."""
        path = self._folder / "metrics.csv"
        return path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []

    def step(self) -> int:
        """The last recorded step."""
        rows = self.rows()
        return int(rows[-1].split(",")[0] or 0) if rows and rows[-1][:1].isdigit() else 0

    def at(self, moment: str, after: int) -> bool:
        """Whether the run is past the step `after` and at the moment to kill it."""
        step = self.step()
        if moment == "checkpoint":
            return step > after and any(self._folder.glob(".step-*.partial"))
        if moment == "validation":
            return step > after and step % VALIDATE_EVERY == 0 and self.rows()[-1].split(",")[1] != ""
        if moment == "epoch":
            return step > after and step % EPOCH in (EPOCH - 1, 0, 1)
        return step > after

    def kill(self, *, rank: bool) -> None:
        """Kill the whole job or one of its ranks, then wait until all of its processes have ended."""
        parent = self._process.pid
        ranks = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        for pid in [random.choice(ranks)] if rank and ranks else [parent, *ranks]:
            os.kill(pid, signal.SIGKILL)
        self._process.communicate(timeout=60)

    def end(self) -> str:
        """Wait for the end of the run; return its output if it failed."""
        _, errors = self._process.communicate(timeout=600)
        return errors.decode() if self._process.returncode else ""


def kill_again_and_again(words: list[str], folder: Path, kills: int, *, ranks: int) -> Counter[str]:
    """Start and kill a run repeatedly, each time a little further, and finally let it finish.

    Each kill is confined to `STEPS_A_KILL` steps of the run. If its moment does not occur within them, because it is
    short on a fast machine, the kill comes at their end.

    Returns:
        The number of kills at each moment.
    """
    done: Counter[str] = Counter()
    for number in track(range(1, kills + 1), f"killing {folder.name}"):
        moment, last = random.choice(MOMENTS), number * STEPS_A_KILL
        job = Job(words, folder)
        after = job.step() + random.randrange(2, STEPS_A_KILL // 2)
        until = time.perf_counter() + random.uniform(0.5, 6.0)
        came = False
        while job.running and job.step() < last and not came:
            time.sleep(0.0005)
            came = time.perf_counter() > until if moment == "again" else job.at(moment, after)
        if came and moment == "step":
            time.sleep(random.uniform(0, 0.1))  # within a step, not at its end
        if not job.running:
            raise SystemExit(f"the run ended before it could be killed: {job.end() or 'it was finished'}")
        job.kill(rank=ranks > 1 and random.random() < 0.5)
        done[moment if came else "step"] += 1
    if problem := Job(words, folder).end():
        raise SystemExit(f"the run did not continue: {problem}")
    return done


def difference(one: Path, other: Path) -> str:
    """Describe how two runs differ; empty if they are equal."""
    curves = [[{key: row.get(key) for key in COMPARED} for row in read_metrics(folder)] for folder in (one, other)]
    if curves[0] != curves[1]:
        return "the losses differ"
    for name in ("last.ckpt", "best.ckpt"):
        first, second = read(one / name), read(other / name)
        pairs = [(first.weights, second.weights)]
        if first.training and second.training:
            pairs += [(state, second.training.optimizer[key]) for key, state in first.training.optimizer.items()]
        if not all(torch.equal(a[key], b[key]) for a, b in pairs for key in a):
            return f"{name} differs"
    return ""


def main() -> None:
    """Run the comparisons, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="kills of each run (default: %(default)s)")
    parser.add_argument("--only", choices=WAYS, help="one way to run")
    parser.add_argument("--seed", type=int, help="seed of the moments (default: a new one each time)")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    random.seed(seed)
    console, failed = Console(width=140), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        text = write_text(folder)
        for way in [options.only] if options.only else WAYS:
            began = time.perf_counter()
            whole, killed = folder / f"{way}-whole", folder / f"{way}-killed"
            if problem := Job(overrides(way, whole, text, options.kills), whole).end():
                raise SystemExit(problem)
            words = overrides(way, killed, text, options.kills)
            kills = kill_again_and_again(words, killed, options.kills, ranks=WAYS[way][1])
            deviation = difference(whole, killed)
            failed |= bool(deviation)
            moments = ", ".join(f"{moment} {count}" for moment, count in sorted(kills.items()))
            seconds = f"{time.perf_counter() - began:.0f}"
            table = Table("run", "kills -9", "when", "seconds", f"ended as the run left alone (seed {seed})")
            table.add_row(
                way, str(sum(kills.values())), moments, seconds, f"no: {deviation}" if deviation else "yes, bit by bit"
            )
            console.print(table)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
