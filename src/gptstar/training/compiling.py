"""Compilation of a run's model: one graph from tokens to loss per shape, and an error instead of a slow fallback."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

import torch

from gptstar.errors import TrainingError
from gptstar.model import GPT


class NotCompiledError(TrainingError):
    """The compiler failed, possibly on this rank only."""


def compile_model(model: GPT, *, n_shapes: int, by_block: bool) -> None:
    """Compile a model in place; its state dict stays as it is.

    Args:
        n_shapes: the number of shapes and modes with which the model will be called; more are an error.
        by_block: compile each block and the loss separately, because FSDP2 gathers parameters between blocks.
    """
    torch._dynamo.reset()  # earlier compilations would count towards the limit
    torch._dynamo.config.recompile_limit = n_shapes
    # PyTorch warns in four lines per compilation that selective checkpointing is experimental.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    if not by_block:
        model.compile(fullgraph=True, dynamic=False)
        return
    for block in model.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    model.losses = torch.compile(model.losses, fullgraph=True, dynamic=False)  # type: ignore[method-assign]


@contextlib.contextmanager
def compiled_call() -> Iterator[None]:
    """Wrap a call of a compiled model, or its backward pass, to turn compiler failures into one-line errors.

    Raises:
        NotCompiledError: PyTorch can't compile the model here, or met more shapes than `compile_model` allowed; it
            would run these uncompiled, many times slower.
        OutOfMemoryError: the device ran out of memory during compilation.
    """
    try:
        yield
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise NotCompiledError(
            f"the model was called with more than the {torch._dynamo.config.recompile_limit} shapes that it was "
            "compiled for: run it with hardware.compile=never"
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
        f"the compiler can't write to TORCHINDUCTOR_CACHE_DIR={folder} ({error.strerror}): choose a writable folder "
        "with free space, or set hardware.compile=never"
    )
