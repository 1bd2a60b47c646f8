"""The checkpoints of a run directory: one a step, the newest few, and what they are called."""

import contextlib
import re
from pathlib import Path

from gptstar.errors import CheckpointError
from gptstar.files import remove, whole_file

LAST, BEST = "last.ckpt", "best.ckpt"
"""Links to the newest checkpoint, and to that with the lowest validation loss."""


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}.ckpt"


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a run directory, `last.ckpt` before the others; whether they are whole, reading says."""
    steps = {
        path: int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"step-(\d+)\.ckpt", path.name))
    }
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


def prune(folder: Path, keep: int) -> None:
    """Leave the newest checkpoints, the best, and nothing that a crash left half written or half removed."""
    best = (folder / BEST).resolve().name
    for path in newest_first(folder)[keep:]:
        if path.name != best:
            removed = path.with_name(f".{path.name}.removed")
            with contextlib.suppress(OSError):  # one that can't be removed does no harm
                path.rename(removed)  # a folder half removed must not look like a checkpoint
    for left in folder.glob(".*.ckpt.*"):
        with contextlib.suppress(OSError):
            remove(left)
