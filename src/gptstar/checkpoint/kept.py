"""The checkpoints of a run directory: one a step, the newest few, and what they are called."""

import contextlib
import re
from pathlib import Path

from gptstar.errors import CheckpointError
from gptstar.files import remove, whole_file

LAST, BEST = "last.ckpt", "best.ckpt"
"""Links to the newest checkpoint, and to that with the lowest validation loss."""

EVALUATIONS = "evaluations"
"""The folder in a run directory that holds the evaluations of its checkpoints."""

ERROR_FILE = "error.txt"
"""In the folder of an evaluation: why there are no results."""


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}.ckpt"


def steps_in(folder: Path) -> dict[Path, int]:
    """The checkpoints of a run directory that are called by their step."""
    return {path: int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"step-(\d+)\.ckpt", path.name))}


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a run directory, `last.ckpt` before the others; whether they are whole, reading says."""
    steps = steps_in(folder)
    ordered = [folder / LAST, *sorted(steps, key=lambda path: -steps[path]), folder / BEST]
    return list(dict.fromkeys(path.parent / path.resolve().name for path in ordered if path.exists()))


def link(path: Path, name: str) -> None:
    """Give a checkpoint a second name beside the first, atomically.

    Raises:
        CheckpointError: the file system knows no links, or is full.
    """
    try:
        with whole_file(path.with_name(name)) as temporary:
            temporary.symlink_to(path.name)
    except OSError as error:
        raise CheckpointError(f"{path} is written, but can't be called {name} ({error.strerror})") from error


def evaluation_of(folder: Path, step: int) -> Path:
    """Return the folder for the evaluation of a step; `is_evaluated` says whether it is complete."""
    return folder / EVALUATIONS / f"step-{step:06d}"


def is_evaluated(evaluation: Path) -> bool:
    """Tell whether an evaluation has ended, with results or with an error."""
    return any((evaluation / name).exists() for name in ("results.json", ERROR_FILE))


def evaluated_steps(folder: Path) -> dict[Path, int]:
    """The evaluations in a run directory, complete or not, by their step; those of averaged weights too."""
    found = ((path, re.fullmatch(r"step-(\d+)(-averaged)?", path.name)) for path in (folder / EVALUATIONS).glob("*"))
    return {path: int(match[1]) for path, match in found if match}


def waiting(folder: Path, every: int | None) -> list[int]:
    """Steps due for evaluation whose checkpoints are there, the earliest first; none where `every` is None."""
    steps = [] if every is None else [step for step in steps_in(folder).values() if step % every == 0]
    return sorted(step for step in steps if not is_evaluated(evaluation_of(folder, step)))


def prune(folder: Path, keep: int, evaluated_every: int | None = None) -> None:
    """Leave the newest checkpoints, the best, and those that are still to be evaluated.

    Of what a crash left half written or half removed nothing stays.
    """
    needed = {of_step(folder, step).name for step in waiting(folder, evaluated_every)}
    needed.add((folder / BEST).resolve().name)
    for path in newest_first(folder)[keep:]:
        if path.name not in needed:
            removed = path.with_name(f".{path.name}.removed")
            with contextlib.suppress(OSError):  # one that can't be removed does no harm
                path.rename(removed)  # a folder half removed must not look like a checkpoint
    for left in folder.glob(".*.ckpt.*"):
        with contextlib.suppress(OSError):
            remove(left)
