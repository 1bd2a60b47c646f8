"""Who a checkpoint is, for results that have to say what they are about."""

import hashlib
from pathlib import Path
from typing import Any

from gptstar.checkpoint.format import Checkpoint


def identity(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Name, hash and history of a checkpoint.

    Args:
        path: a file, or an exported folder, whose weights are hashed.

    Returns:
        `name`, `path`, `sha256`, `n_params`, `context_length` (in training), `step`, `tokens` (seen in training) and
        `model`, its configuration; None for what it does not know.
    """
    training = checkpoint.training
    settings = training.settings if training else {}
    step = training.step if training else None
    batch_tokens = settings.get("batch_tokens")
    return {
        "name": f"{path.resolve().parent.name}/{path.stem}" if path.is_file() else path.resolve().name,
        "path": str(path.resolve()),
        "sha256": _sha256(path),
        "n_params": checkpoint.model.n_params,
        "context_length": settings.get("data.context_length"),
        "step": step,
        "tokens": step * batch_tokens if step is not None and batch_tokens else None,
        "model": checkpoint.model.as_dict(),
    }


def _sha256(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) + sorted(path.glob("*.bin"))
    if len(files) == 1:
        with files[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digests = "".join(f"{file.name} {_sha256(file)}\n" for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()
