"""Compiling a run's model: one graph from tokens to loss for each shape, and an error instead of a slow fallback."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

import torch

from gptstar.errors import TrainingError
from gptstar.model import GPT


class NotCompiledError(TrainingError):
    """The compiler failed, perhaps on this rank alone."""


def compile_model(model: GPT, *, n_shapes: int, by_block: bool) -> None:
    """Compile a model in place; its state dict stays as it is.

    Args:
        n_shapes: shapes and modes that the model will be called with; one more is an error.
        by_block: compile each block and the loss by itself, as a model in parts (FSDP2) gathers its parameters between
            blocks.
    """
    torch._dynamo.reset()  # what was compiled before would count
    torch._dynamo.config.recompile_limit = n_shapes
    # Selective checkpointing is announced as experimental, in four lines for each compilation.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    if not by_block:
        model.compile(fullgraph=True, dynamic=False)
        return
    for block in model.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    model.losses = torch.compile(model.losses, fullgraph=True, dynamic=False)  # type: ignore[method-assign]


@contextlib.contextmanager
def compiled_call() -> Iterator[None]:
    """Around a call of a compiled model, and its backward pass: say in one line what the compiler can't do.

    Raises:
        NotCompiledError: PyTorch can't compile the model here, or met a shape more than were announced, which it would
            compute without the compiler, many times slower.
        OutOfMemoryError: the compiler's own, as PyTorch raises it elsewhere.
    """
    try:
        yield
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise NotCompiledError(
            f"the model met a shape more than the {torch._dynamo.config.recompile_limit} it was to be compiled for: "
            "run it with hardware.compile=never"
        ) from error
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if isinstance(error.inner_exception, torch.OutOfMemoryError):
            raise error.inner_exception from error
        inner = error.inner_exception
        if isinstance(inner, OSError):
            raise _unwritable(inner) from error
        reason = str(inner).strip().partition("\n")[0]
        raise NotCompiledError(
            f"PyTorch can't compile the model here ({reason}): run it with hardware.compile=never"
        ) from error
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> NotCompiledError:
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    return NotCompiledError(
        f"the compiler can't write to TORCHINDUCTOR_CACHE_DIR={folder} ({error.strerror}): give a folder with room, or "
        "hardware.compile=never"
    )
