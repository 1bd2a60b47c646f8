"""The identity of a checkpoint, for results that must name their model."""

import hashlib
from pathlib import Path
from typing import Any

from gptstar.checkpoint.format import DESCRIPTION, Checkpoint, in_parts
from gptstar.checkpoint.read import AVERAGED, parted, read
from gptstar.errors import CheckpointError
from gptstar.files import file_sha256


def read_with_identity(path: Path) -> tuple[dict[str, Any], Checkpoint]:
    """Read a checkpoint together with its identity.

    Raises:
        CheckpointError: as `read`; or the file was replaced meanwhile, as a running run may replace its best one.
    """
    before = _state(path)
    checkpoint = read(path)
    known = identity(path, checkpoint)
    if _state(path) != before:
        raise CheckpointError(f"{path} changed while it was read: run the same command again, or copy it first")
    return known, checkpoint


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Return values that change when a file is replaced; empty if there is no file."""
    path, _ = parted(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [(file.name, stat.st_ino, stat.st_mtime_ns) for file in files for stat in [file.stat()]]


def identity(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return name, hash and history of a checkpoint.

    Args:
        path: a file, a sharded checkpoint, or an exported folder, of which weights, settings and tokenizer are hashed.
            Averaged weights have another name and another hash than the last weights.

    Returns:
        `name`, `path`, `sha256`, `n_params`, `context_length` (in training), `step`, `tokens` (read in training) and
        `model`, its configuration; None for unknown values.
    """
    plain, averaged = parted(path)
    is_ours = plain.is_file() or in_parts(plain)
    name = f"{plain.resolve().parent.name}/{plain.stem}" if is_ours else plain.resolve().name
    after, sha256 = AVERAGED if averaged else "", _sha256(plain)
    return {
        "name": f"{name}{after}",
        "path": f"{plain.resolve()}{after}",
        "sha256": hashlib.sha256(f"{sha256}{after}".encode()).hexdigest() if averaged else sha256,
        "n_params": checkpoint.model.n_params,
        "context_length": checkpoint.trained_at,
        "step": checkpoint.training.step if checkpoint.training else None,
        "tokens": checkpoint.trained_tokens,
        "model": checkpoint.model.as_dict(),
    }


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    if in_parts(path):
        return file_sha256(path / DESCRIPTION)  # this file holds the hashes of all others
    names = ("config.json", "tokenizer.json", "*.safetensors", "*.bin")
    files = sorted(file for name in names for file in path.glob(name))
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()
