"""Any checkpoint, by its path: a file, a folder that the ranks of a sharded run wrote, or a Hugging Face folder."""

import os
from dataclasses import replace
from pathlib import Path

from gptstar.checkpoint.format import Checkpoint, in_parts, read_file
from gptstar.checkpoint.kept import BEST, LAST
from gptstar.errors import CheckpointError
from gptstar.model import GPT

AVERAGED = ":averaged"
"""The suffix of a checkpoint's path that selects its averaged weights."""


def load(path: str | os.PathLike[str]) -> GPT:
    """Load any checkpoint, trained here or imported, as the plain torch model in eval mode.

    `model(tokens)` gives logits `(batch, position, n_vocab)` for tokens `(batch, position)`, and
    `gptstar.generate(model, "a prompt")` texts.

    Args:
        path: a checkpoint, a run directory, whose best checkpoint is taken, or an exported Hugging Face folder;
            `PATH:averaged` for the averaged weights of a run with `averaging=ema` or `tail`.

    Raises:
        CheckpointError: missing, damaged or unsafe; names the file.
    """
    return read(find(Path(path))).build()


def parted(path: Path) -> tuple[Path, bool]:
    """The path of a checkpoint without what is put after it, and whether its averaged weights are meant."""
    plain = path.name.removesuffix(AVERAGED)
    if plain in ("", path.name) or path.exists():
        return path, False
    return path.with_name(plain), True


def find(path: Path) -> Path:
    """The checkpoint meant by a path: itself, a run directory's best or its last, or an exported Hugging Face folder.

    `:averaged` stays behind what is found.

    Raises:
        CheckpointError: there is none.
    """
    plain, averaged = parted(path)
    if averaged:
        found = find(plain)
        return found.with_name(f"{found.name}{AVERAGED}")
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).exists():
            return path / name
    if in_parts(path) or (path / "config.json").exists():
        return path
    raise CheckpointError(
        f"{path} holds neither best.ckpt nor last.ckpt, nor the config.json of an exported model: give a run directory "
        "or a checkpoint"
    )


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, or an exported Hugging Face folder.

    Raises:
        CheckpointError: missing, cut short, altered, unsafe, or not of this format; or it lacks the averaged weights
            that are asked for; names the file.
    """
    plain, averaged = parted(path)
    if averaged:
        checkpoint = read(plain)
        if not checkpoint.averaged:
            raise CheckpointError(
                f"{plain} holds no averaged weights: drop {AVERAGED}, or train with averaging=ema or averaging=tail"
            )
        return replace(checkpoint, weights=checkpoint.averaged, averaged={}, is_average=True)
    if in_parts(path):
        from gptstar.checkpoint.parts import read_parts  # imports torch.distributed.checkpoint, which a file needs not

        return read_parts(path)
    if path.is_dir():
        from gptstar.checkpoint.huggingface.read import read_huggingface  # imports safetensors

        return read_huggingface(path)
    return read_file(path)
