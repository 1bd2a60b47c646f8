"""Does the recipe of `experiment=fast_small` need half the tokens, and half the time? One command from text to tables.

    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst'                         all of it: two to four hours on two cores
    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst' --only tuning,headline  some of it
    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst' --show                  the tables of what ran so far

The reference is AdamW with a cosine, at the learning rate that is best for it: each of four is tried with the whole
budget, by a seed that is used for nothing else, as the recipe was chosen on two. The headline's runs take turns, so
that their times can be compared: one of the reference, then those of the recipe at each of its budgets, `--jobs` at a
time with a share of the cores each; leave the machine alone meanwhile. Give the same command again at any time: what is
finished is kept, and what was interrupted goes on. What each run says is in a file beside it, as are the tables and the
picture.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import recipe_figures
from gptstar.apart import Job, share_of_machine
from gptstar.cli import one_line_errors
from gptstar.composing import compose
from gptstar.errors import ConfigError, TrainingError
from gptstar.results.run import Run

ROOT = Path(__file__).parents[1]
REFERENCE, RECIPE = "experiment=fast_small_reference", "experiment=fast_small"
TUNING_SEED = 100
DECIDED = (
    "experiment",
    "seed",
    "output",
    "total_steps",
    "optimizer",
    "schedule",
    "curriculum",
    "model.d_model",
    "model.n_heads",
)
"""Keys, and all below them, that the study sets."""


@dataclass(frozen=True)
class Scale:
    """What is compared with what.

    Attributes:
        title: what it is, for people.
        both: overrides of reference and recipe; `reference` and `recipe` are of one of them.
        rates: that the reference tries.
    """

    title: str
    both: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    rates: tuple[float, ...] = (1e-3, 1.4e-3, 2e-3, 2.8e-3)


SCALES = {
    "small": Scale("two layers of 256, 400 steps"),
    "smaller": Scale(
        "two layers of 128, 400 steps",
        both=("model.d_model=128", "model.n_heads=2"),
        rates=(1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3, 8e-3),
    ),
    "longer": Scale(
        "two layers of 256, 1,600 steps",
        reference=("total_steps=1600", "schedule.warmup_steps=160"),
        recipe=("total_steps=688", "schedule.warmup_steps=68", "curriculum.steps=600"),
    ),
}
"""The recipe was chosen at the first alone, and the reference is tuned at each. More steps have longer warm-ups."""

FIRST, *TRANSFER = SCALES
STAGES = ("tuning", "headline", "ingredients", *TRANSFER)

WITHOUT = {
    "Muon, with AdamW at the reference's rate": ("optimizer=adamw", "optimizer.learning_rate=RATE"),
    "published proportions": ("optimizer.adjust_lr=match_rms_adamw",),
    "heads apart, in four iterations": ("optimizer.heads_apart=false", "optimizer.iterations=5"),
    "short memory": ("optimizer.momentum=0.95", "optimizer.beta1=0.9", "optimizer.beta2=0.95"),
    "short windows first": ("curriculum.first_length=null", "curriculum.steps=null"),
}
"""What makes of the recipe one that lacks an ingredient; `RATE` is the reference's best."""

BUDGETS = (0.3, 0.6)
"""Shares of the reference's steps at which the recipe runs too, each with a schedule that ends there."""

NO_READING = "reading.multiples=[]"


@dataclass(frozen=True)
class Cell:
    """A run of the study: where it is, and what it is of."""

    path: Path
    overrides: tuple[str, ...]
    seed: int

    def run(self) -> Run | None:
        """What it recorded, if it is finished."""
        run = Run.read(self.path) if self.path.is_dir() else None
        return run if run is not None and run.state == "finished" else None


@dataclass(frozen=True)
class Study:
    """What there is to run.

    Attributes:
        given: overrides for all runs.
    """

    output: Path
    given: tuple[str, ...]
    seeds: int

    def _cell(self, name: str, *overrides: str, seed: int) -> Cell:
        return Cell(self.output / f"{name}_seed-{seed}", (*self.given, *overrides, f"seed={seed}"), seed)

    @property
    def counted(self) -> range:
        """Seeds of all comparisons; 0 and 1 are those that the recipe was chosen on."""
        return range(2, self.seeds + 2)

    def tuning(self, scale: str) -> dict[float, Cell]:
        """The reference at each rate."""
        return {
            rate: self._cell(
                f"tuning/{scale}_rate-{rate}",
                *(REFERENCE, f"optimizer.learning_rate={rate}", *SCALES[scale].both, *SCALES[scale].reference),
                NO_READING,
                seed=TUNING_SEED,
            )
            for rate in SCALES[scale].rates
        }

    def tried(self, scale: str) -> dict[float, float]:
        """The reference's validation loss at each rate that it has run at."""
        return {rate: run.validation_loss for rate, cell in self.tuning(scale).items() if (run := cell.run())}

    def is_tuned(self, scale: str) -> bool:
        """Whether the reference has run at each rate."""
        return len(self.tried(scale)) == len(SCALES[scale].rates)

    def best_rate(self, scale: str) -> float:
        """The reference's.

        Raises:
            ConfigError: it was not tuned yet.
        """
        found = self.tried(scale)
        if len(found) < len(SCALES[scale].rates):
            raise ConfigError(f"the reference is not tuned in {self.output} yet: run --only tuning first")
        return min(found, key=lambda rate: found[rate])

    def arms(self, scale: str) -> dict[int, tuple[Cell, Cell]]:
        """Reference and recipe, by seed; at the first scale they are read at other lengths, too."""
        folder, read = ("headline", ()) if scale == FIRST else ("transfer", (NO_READING,))
        rate, of = f"optimizer.learning_rate={self.best_rate(scale)}", SCALES[scale]
        return {
            seed: (
                self._cell(f"{folder}/{scale}_reference", REFERENCE, rate, *of.both, *of.reference, *read, seed=seed),
                self._cell(f"{folder}/{scale}_recipe", RECIPE, *of.both, *of.recipe, *read, seed=seed),
            )
            for seed in self.counted
        }

    def ingredients(self) -> dict[str, list[Cell]]:
        """The recipe without each, by seed."""
        rate = str(self.best_rate(FIRST))
        return {
            name: [
                self._cell(
                    f"ingredients/without_{name.partition(',')[0].replace(' ', '-')}",
                    *(RECIPE, *(word.replace("RATE", rate) for word in words), NO_READING),
                    seed=seed,
                )
                for seed in self.counted
            ]
            for name, words in WITHOUT.items()
        }

    def budgets(self) -> dict[int, list[Cell]]:
        """The recipe at other numbers of steps, by seed."""
        whole, recipe = (compose("train", [each, *self.given]) for each in (REFERENCE, RECIPE))
        found = {}
        for steps in (round(share * whole.total_steps) for share in BUDGETS):
            short = round(steps * recipe.curriculum.steps / recipe.total_steps)
            words = (RECIPE, f"total_steps={steps}", f"curriculum.steps={short}", NO_READING)
            found[steps] = [self._cell(f"budgets/steps-{steps}", *words, seed=seed) for seed in self.counted]
        return found

    def stage(self, name: str) -> Iterator[list[Cell]]:
        """Cells in the order in which they run; what comes next may depend on what those before have shown."""
        if name == "tuning":
            yield list(self.tuning(FIRST).values())
        elif name == "headline":
            yield in_turn(*zip(*self.arms(FIRST).values(), strict=True), *self.budgets().values())
        elif name == "ingredients":
            yield in_turn(*self.ingredients().values())
        else:
            yield list(self.tuning(name).values())
            yield in_turn(*zip(*self.arms(name).values(), strict=True))


def in_turn(*designs: Sequence[Cell]) -> list[Cell]:
    """One of each, then the next of each."""
    return [cell for of_one_seed in zip(*designs, strict=True) for cell in of_one_seed]


def run_all(name: str, cells: Sequence[Cell], jobs: int) -> None:
    """Run them, some at a time; what is finished ends at once, when `train.py` has seen that it is of these settings.

    Raises:
        TrainingError: a run failed; says what it said. Those at work save and end, and no other begins.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    at_work: dict[Path, Job] = {}
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(jobs):
        places.put(place)

    def run(cell: Cell) -> None:
        place = places.get()
        cell.path.parent.mkdir(parents=True, exist_ok=True)
        words, log = [*cell.overrides, f"output={cell.path}"], cell.path.with_name(f"{cell.path.name}.txt")
        job = Job(str(ROOT / "train.py"), words, log=log, environment=share_of_machine(place, jobs))
        at_work[cell.path] = job
        try:
            job.wait()
        except TrainingError as error:
            raise TrainingError(f"{cell.path}: {error}") from error
        finally:
            del at_work[cell.path]
            places.put(place)

    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task(name, total=len(cells))
        started = [pool.submit(run, cell) for cell in cells]
        try:
            for each in as_completed(started):
                each.result()
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for job in list(at_work.values()):
                job.tell(signal.SIGTERM)
            raise


def main() -> None:
    """Run the stages that are asked for, then show and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", help="text, a glob: each folder is a corpus, of which whole documents are held out")
    parser.add_argument("given", nargs="*", help="overrides for all runs, such as model.n_vocab=4096")
    parser.add_argument("--output", type=Path, default=Path("runs/recipe"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: %(default)s)")
    parser.add_argument("--only", default=",".join(STAGES), help="some of (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with one_line_errors():
        asked = options.only.split(",")
        if unknown := set(asked) - set(STAGES):
            raise ConfigError(f"--only {options.only}: there is no {min(unknown)}; the stages are {', '.join(STAGES)}")
        for name in ("seeds", "jobs"):
            if getattr(options, name) < 1:
                raise ConfigError(f"--{name} {getattr(options, name)} is below 1")
        for word in options.given:
            key = word.lstrip("+~").partition("=")[0]
            if any(key == each or key.startswith(f"{each}.") for each in DECIDED):
                raise ConfigError(f"{word}: the study itself decides on {key}; change it in {Path(__file__).name}")
        study = Study(options.output, (f"data.files={options.files}", *options.given), options.seeds)
        for stage in STAGES if not options.show else ():
            if stage in asked:
                for cells in study.stage(stage):
                    run_all(stage, cells, options.jobs)
        recipe_figures.show(study, {name: scale.title for name, scale in SCALES.items()})


if __name__ == "__main__":
    main()
