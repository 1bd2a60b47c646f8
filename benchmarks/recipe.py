"""Does the recipe of `experiment=fast_small` need half the tokens, and half the time? One command from text to tables.

    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst'                         all of it: two to four hours on two cores
    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst' --only tuning,headline  some of it
    python benchmarks/recipe.py 'TEXT/*/*.jsonl.zst' --show                  the tables of what ran so far

The reference is AdamW with a cosine and the seed's betas, at the learning rate and the tokens a step that are best for
it: each pair is tried with the whole budget, by a seed that is used for nothing else, as the recipe was chosen on two.
Beside it are the best at the recipe's own tokens a step, and the reference with the best betas that were found for it.
The headline's runs take turns, so that their times can be compared: one of each reference, then those of the recipe at
each of its budgets, `--jobs` at a time with a share of the cores each; leave the machine alone meanwhile. Give the same
command again at any time: what is finished is kept, and what was interrupted goes on. What each run says is in a file
beside it, as are the tables and the picture.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import recipe_figures
from gptstar.entry import one_line_errors
from gptstar.errors import ConfigError, TrainingError
from gptstar.launch.job import Job, share_of_machine
from recipe_study import STAGES, TUNING_SEED, Cell, Study

ROOT = Path(__file__).parents[1]
DECIDED = (
    "debug",
    "experiment",
    "seed",
    "output",
    "total_steps",
    "batch_tokens",
    "hardware.micro_batch_size",
    "data.context_length",
    "data.block_tokens",
    "optimizer",
    "schedule",
    "curriculum",
    "model.d_model",
    "model.n_heads",
)
"""Keys, and all below them, that the study sets."""

STUDY_FILE = "study.json"

LEAST_TOKENS = 16384
"""With fewer, the recipe's shortest budget has no steps to warm up in."""


def check_folder(study: Study) -> None:
    """See that what has run in its folder is of this study.

    Raises:
        ConfigError: it was run on other text, at other sizes, or with another budget.
    """
    path = study.output / STUDY_FILE
    if not path.exists():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it if the runs beside it are this study's") from error
    if theirs != (ours := select_queries(study)):
        raise ConfigError(
            f"{study.output} holds another study, {theirs}, not {ours}: give the same, or another --output"
        )


def claim_folder(study: Study) -> None:
    """Say beside what has run which study it is of."""
    (study.output / STUDY_FILE).write_text(json.dumps(select_queries(study), indent=1) + "\n", encoding="utf-8")


def select_queries(study: Study) -> dict[str, object]:
    """What all runs follow from; with more seeds they are the same runs and others."""
    return {"given": [*study.given], "tokens": study.tokens}


def run_all(name: str, cells: Sequence[Cell], jobs: int) -> None:
    """Run them, some at a time; what is finished ends at once, when `train.py` has seen that it is of these settings.

    Raises:
        TrainingError: a run failed; says what it said. Those at work save and end, and no other begins.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    at_work: dict[Path, Job] = {}
    failed = Event()
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(jobs):
        places.put(place)

    def run(cell: Cell) -> None:
        if failed.is_set():
            return
        place = places.get()
        cell.path.parent.mkdir(parents=True, exist_ok=True)
        words, log = [*cell.overrides, f"output={cell.path}"], cell.path.with_name(f"{cell.path.name}.txt")
        job = Job(str(ROOT / "train.py"), words, log=log, environment=share_of_machine(place, jobs))
        at_work[cell.path] = job
        try:
            job.wait()
        except TrainingError as error:
            failed.set()  # before this thread takes up the next
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
    parser.add_argument(
        "--tokens", type=int, help="of the reference, into another --output (default: those of its experiment)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: %(default)s)")
    parser.add_argument("--only", default=",".join(STAGES), help="some of (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with one_line_errors():
        asked = options.only.split(",")
        if unknown := set(asked) - set(STAGES):
            raise ConfigError(f"--only {options.only}: there is no {min(unknown)}; the stages are {', '.join(STAGES)}")
        for name, least in (("seeds", 1), ("jobs", 1), ("tokens", LEAST_TOKENS)):
            if (given := getattr(options, name)) is not None and given < least:
                raise ConfigError(f"--{name} {given} is below {least}")
        if TUNING_SEED in range(options.seeds + 2):
            raise ConfigError(
                f"--seeds {options.seeds} would count seed {TUNING_SEED}, which is the tuning's: give fewer"
            )
        for word in options.given:
            key = word.lstrip("+~").partition("=")[0]
            if any(key == each or key.startswith(f"{each}.") for each in DECIDED):
                raise ConfigError(f"{word}: the study itself decides on {key}; change it in {Path(__file__).name}")
        study = Study(options.output, (f"data.files={options.files}", *options.given), options.seeds, options.tokens)
        check_folder(study)
        for stage in STAGES if not options.show else ():
            if stage in asked:
                for cells in study.stage(stage):
                    run_all(stage, cells, options.jobs)
                    claim_folder(study)  # not before: what was refused at once is no study
        recipe_figures.show(study)


if __name__ == "__main__":
    main()
