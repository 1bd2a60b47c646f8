"""The checkpoints that a run directory keeps: their names, and which ones to remove."""

import contextlib
import re
from pathlib import Path

from gptstar.errors import CheckpointError
from gptstar.files import read_json, remove, whole_file

LAST, BEST = "last.ckpt", "best.ckpt"
"""Links to the newest checkpoint, and to the one with the lowest validation loss."""

EVALUATIONS = "evaluations"
"""The folder in a run directory that holds the evaluations of its checkpoints."""

RESTORED = "restored.json"
"""The file in a restored run directory that names the table it was restored from."""

ERROR_FILE = "error.txt"
"""The file in an evaluation's folder that states why there are no results."""


def restored_from(folder: Path) -> str | None:
    """Return the table from which a run directory was restored; None if the run was trained here."""
    try:
        return str(read_json(folder / RESTORED)["table"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return "a table"


def of_step(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step:06d}.ckpt"


def steps_in(folder: Path) -> dict[Path, int]:
    """Return the checkpoints of a run directory that are named by step, with their steps."""
    return {path: int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"step-(\d+)\.ckpt", path.name))}


def newest_first(folder: Path) -> list[Path]:
    """List all checkpoints of a run directory, `last.ckpt` first; they may be damaged, which reading detects."""
    steps = steps_in(folder)
    ordered = [folder / LAST, *sorted(steps, key=lambda path: -steps[path]), folder / BEST]
    return list(dict.fromkeys(path.parent / path.resolve().name for path in ordered if path.exists()))


def link(path: Path, name: str) -> None:
    """Link a second name to a checkpoint, atomically.

    Raises:
        CheckpointError: the file system doesn't support links, or is full.
    """
    try:
        with whole_file(path.with_name(name)) as temporary:
            temporary.symlink_to(path.name)
    except OSError as error:
        raise CheckpointError(
            f"{path} is written, but the link {name} to it can't be made ({error.strerror}): use a file system with "
            "symbolic links and free space"
        ) from error


def evaluation_of(folder: Path, step: int) -> Path:
    """Return the folder for the evaluation of a step; `is_evaluated` says whether it is complete."""
    return folder / EVALUATIONS / f"step-{step:06d}"


def is_evaluated(evaluation: Path) -> bool:
    """Return whether an evaluation has ended, with results or with an error."""
    return any((evaluation / name).exists() for name in ("results.json", ERROR_FILE))


def evaluated_steps(folder: Path) -> dict[Path, int]:
    """Return the evaluations in a run directory, complete or not, with their steps; also of averaged weights."""
    matches = ((path, re.fullmatch(r"step-(\d+)(-averaged)?", path.name)) for path in (folder / EVALUATIONS).glob("*"))
    return {path: int(match[1]) for path, match in matches if match}


def waiting(folder: Path, every: int | None) -> list[int]:
    """List the steps that are due for evaluation and have a checkpoint, earliest first; none if `every` is None."""
    steps = [] if every is None else [step for step in steps_in(folder).values() if step % every == 0]
    return sorted(step for step in steps if not is_evaluated(evaluation_of(folder, step)))


def prune(folder: Path, keep: int, evaluated_every: int | None = None) -> None:
    """Remove checkpoints, except the newest, the best, and those that wait for evaluation.

    Also remove everything that a crash left half written or half removed.
    """
    needed = {of_step(folder, step).name for step in waiting(folder, evaluated_every)}
    needed.add((folder / BEST).resolve().name)
    for path in newest_first(folder)[keep:]:
        if path.name not in needed:
            removed = path.with_name(f".{path.name}.removed")
            with contextlib.suppress(OSError):  # a checkpoint that can't be removed does no harm
                path.rename(removed)  # a half-removed folder must not look like a checkpoint
    for left in folder.glob(".*.ckpt.*"):
        with contextlib.suppress(OSError):
            remove(left)
