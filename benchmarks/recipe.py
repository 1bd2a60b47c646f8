"""Does the recipe of `experiment=fast_small` need half the tokens, and half the time? One command from text to tables.

    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst'                     all of it: hours on two CPU cores
    python benchmarks/recipe.py TEXT/... --only tuning,headline --seeds 3  some of it
    python benchmarks/recipe.py TEXT/... --show                          the tables of what ran so far

The reference is AdamW with a cosine, at the learning rate that is best for it of `RATES`, each tried with the whole
budget. The headline's runs go one at a time, reference and recipe in turn, with the machine to themselves, so that their
times can be compared; all others `--jobs` at a time with a share of the cores. Give the same command again at any time:
what is finished is kept, what was interrupted goes on. Tables and picture are written beside the runs.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import recipe_figures
from gptstar.cli import one_line_errors
from gptstar.errors import ConfigError, TrainingError
from gptstar.results.run import Run

ROOT = Path(__file__).parents[1]

REFERENCE, RECIPE = ("experiment=fast_small_reference",), ("experiment=fast_small",)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
"""Of the reference, each with the whole budget."""

WITHOUT = {
    "Muon": ("optimizer=adamw",),
    "curriculum": ("curriculum.first_length=null",),
}
"""The recipe less one ingredient each."""

SIZES = {"small": (), "smaller": ("model.d_model=128", "model.n_heads=2")}
"""The recipe is tuned at the first alone; the reference at each."""

BUDGETS = (0.25, 0.35, 0.6)
"""Of the reference's steps: runs of the recipe beside its own, each with a schedule that ends there."""

STAGES = ("tuning", "headline", "ingredients", "budgets", "sizes")


@dataclass(frozen=True)
class Cell:
    """A run: its folder's name, and what it is of."""

    name: str
    overrides: tuple[str, ...]


class Study:
    """The runs in a folder.

    Args:
        given: overrides for all runs.
        jobs: runs at a time, where times do not matter.
    """

    def __init__(self, output: Path, given: Sequence[str], *, seeds: int, jobs: int) -> None:
        self.output, self.given, self.seeds, self.jobs = output, tuple(given), seeds, jobs

    def run(self, stage: str, cells: Sequence[Cell], *, at_once: int) -> None:
        """Run what is not finished.

        Raises:
            TrainingError: a run failed; says what it said.
        """
        threads = max(1, (os.cpu_count() or 1) // at_once)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(at_once) as pool:
            task = progress.add_task(stage, total=len(cells))
            started = [pool.submit(self._run, cell, threads) for cell in cells]
            try:
                for each in as_completed(started):
                    each.result()
                    progress.advance(task)
            except BaseException:
                pool.shutdown(cancel_futures=True, wait=False)
                raise

    def _run(self, cell: Cell, threads: int) -> None:
        words = [str(ROOT / "train.py"), *cell.overrides, *self.given, f"output={self.output / cell.name}"]
        done = subprocess.run(
            [sys.executable, *words],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise TrainingError(f"{cell.name}: {said[-1].removeprefix('error: ')}")

    def tuning(self, size: str) -> list[Cell]:
        """The reference at each rate, of the first seed."""
        return [self._reference(size, rate, 0) for rate in RATES]

    def _reference(self, size: str, rate: float, seed: int, stage: str = "tuning") -> Cell:
        words = (*REFERENCE, *SIZES[size], f"optimizer.learning_rate={rate}", f"seed={seed}")
        return Cell(f"{stage}/{size}_reference_rate-{rate}_seed-{seed}", words)

    def best_rate(self, size: str) -> float:
        """The reference's.

        Raises:
            ConfigError: it was not tuned yet.
        """
        tried = {rate: self.loss(self._reference(size, rate, 0)) for rate in RATES}
        if not all(tried.values()):
            raise ConfigError(f"the reference is not tuned in {self.output} yet: run --only tuning first")
        return min(RATES, key=lambda rate: tried[rate] or 0.0)

    def loss(self, cell: Cell) -> float | None:
        """Of a finished run, on held-out text."""
        path = self.output / cell.name
        run = Run.read(path) if path.is_dir() else None
        return run.validation_loss if run is not None and run.state == "finished" else None

    def arms(self, size: str, stage: str) -> list[tuple[Cell, Cell]]:
        """Reference and recipe, by seed."""
        rate = self.best_rate(size)
        return [
            (
                self._reference(size, rate, seed, stage),
                Cell(f"{stage}/{size}_recipe_seed-{seed}", (*RECIPE, *SIZES[size], f"seed={seed}")),
            )
            for seed in range(self.seeds)
        ]

    def ingredients(self) -> dict[str, list[Cell]]:
        """The recipe without each, by seed."""
        return {
            name: [
                Cell(f"ingredients/without-{name.replace(' ', '-')}_seed-{seed}", (*RECIPE, *words, f"seed={seed}"))
                for seed in range(self.seeds)
            ]
            for name, words in WITHOUT.items()
        }

    def budgets(self) -> dict[float, list[Cell]]:
        """The recipe at other budgets, by seed."""
        steps = {share: round(share * recipe_figures.steps_of(REFERENCE)) for share in BUDGETS}
        return {
            share: [
                Cell(f"budgets/steps-{steps[share]}_seed-{seed}", (*RECIPE, f"total_steps={steps[share]}", f"seed={seed}"))
                for seed in range(self.seeds)
            ]
            for share in BUDGETS
        }


def main() -> None:
    """Run the stages that are asked for, then show and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", help="text to train on, a glob; whole documents of it are held out")
    parser.add_argument("given", nargs="*", help="overrides for all runs, such as total_steps=20")
    parser.add_argument("--output", type=Path, default=Path("runs/recipe"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time, where times don't matter (default: %(default)s)")
    parser.add_argument("--only", default=",".join(STAGES), help="some of (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with one_line_errors():
        if unknown := set(options.only.split(",")) - set(STAGES):
            raise ConfigError(f"--only {options.only}: there is no {min(unknown)}; the stages are {', '.join(STAGES)}")
        study = Study(
            options.output, [f"data.files={options.files}", *options.given], seeds=options.seeds, jobs=options.jobs
        )
        if not options.show:
            for stage in (each for each in STAGES if each in options.only.split(",")):
                run_stage(study, stage)
        recipe_figures.show(study)


def run_stage(study: Study, stage: str) -> None:
    """One of `STAGES`."""
    first, *others = SIZES
    if stage == "tuning":
        study.run(stage, study.tuning(first), at_once=study.jobs)
    elif stage == "headline":
        study.run(stage, [cell for pair in study.arms(first, stage) for cell in pair], at_once=1)
    elif stage == "ingredients":
        by_seed = zip(*study.ingredients().values(), strict=True)
        study.run(stage, [cell for cells in by_seed for cell in cells], at_once=study.jobs)
    elif stage == "budgets":
        study.run(stage, [cell for cells in study.budgets().values() for cell in cells], at_once=study.jobs)
    else:
        for size in others:
            study.run(f"tuning, {size}", study.tuning(size), at_once=study.jobs)
            study.run(size, [cell for pair in study.arms(size, stage) for cell in pair], at_once=study.jobs)


if __name__ == "__main__":
    main()
