"""Read any checkpoint by its path: a file, a sharded checkpoint, or a Hugging Face folder."""

import os
from dataclasses import replace
from pathlib import Path

from gptstar.checkpoint.format import Checkpoint, in_parts, read_file
from gptstar.checkpoint.kept import BEST, LAST, restored_from
from gptstar.errors import CheckpointError
from gptstar.model import GPT

AVERAGED = ":averaged"
"""The suffix of a checkpoint's path that selects its averaged weights."""


def load(path: str | os.PathLike[str]) -> GPT:
    """Load any checkpoint, trained or imported, as a plain torch model in eval mode.

    `model(tokens)` returns logits `(batch, position, n_vocab)` for tokens `(batch, position)`, and
    `gptstar.generate(model, "a prompt")` returns texts.

    Args:
        path: a checkpoint, a run directory (its best checkpoint is used), or an exported Hugging Face folder;
            `PATH:averaged` selects the averaged weights of a run with `averaging=ema` or `tail`.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or unsafe; names the file.
    """
    return read(find(Path(path))).build()


def parted(path: Path) -> tuple[Path, bool]:
    """Split a path: return it without `:averaged`, and whether that suffix was there."""
    plain = path.name.removesuffix(AVERAGED)
    if plain in ("", path.name) or path.exists():
        return path, False
    return path.with_name(plain), True


def find(path: Path) -> Path:
    """Return the checkpoint that a path names: the path itself, or a run directory's best or last checkpoint.

    An exported Hugging Face folder is returned as it is. A suffix `:averaged` is kept.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    plain, averaged = parted(path)
    if averaged:
        checkpoint = find(plain)
        return checkpoint.with_name(f"{checkpoint.name}{AVERAGED}")
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).exists():
            return path / name
    if in_parts(path) or (path / "config.json").exists():
        return path
    if (table := restored_from(path)) is not None:
        raise CheckpointError(f"{path} was restored from {table}, without checkpoint: train it in another output")
    raise CheckpointError(
        f"{path} holds neither best.ckpt nor last.ckpt, nor the config.json of an exported model: give a run directory "
        "or a checkpoint"
    )


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, or an exported Hugging Face folder.

    Raises:
        CheckpointError: the checkpoint is missing, truncated, altered, unsafe, has another format, or lacks the
            averaged weights that the path selects; names the file.
    """
    plain, averaged = parted(path)
    if averaged:
        checkpoint = read(plain)
        if not checkpoint.averaged:
            raise CheckpointError(
                f"{plain} has no averaged weights: drop {AVERAGED}, or train with averaging=ema or averaging=tail"
            )
        return replace(checkpoint, weights=checkpoint.averaged, averaged={}, is_average=True)
    if in_parts(path):
        from gptstar.checkpoint.parts import read_parts  # imports torch.distributed.checkpoint, which files don't need

        return read_parts(path)
    if path.is_dir():
        from gptstar.checkpoint.huggingface.read import read_huggingface  # imports safetensors

        return read_huggingface(path)
    return read_file(path)
