"""Train, evaluate and study GPT* language models."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptstar import results
    from gptstar.checkpoint.read import load
    from gptstar.evaluation.harness import lm
    from gptstar.inference.generate import generate, stream
    from gptstar.inference.sampling import Sampling


def _refuse_windows() -> None:
    """Raise an ImportError, which importers of plugins such as Hydra catch, and which Python shows in one line."""
    refusal = ImportError("gptstar runs on Linux and macOS: on Windows, install and run it in WSL (wsl --install)")
    show_others = sys.excepthook

    def show(kind: Any, error: BaseException, trace: Any) -> None:
        if error is refusal:
            print(f"error: {error}", file=sys.stderr)
        else:
            show_others(kind, error, trace)

    sys.excepthook = show
    raise refusal


if sys.platform == "win32":
    _refuse_windows()

__version__ = "0.1.0"
__all__ = ["Sampling", "generate", "lm", "load", "results", "stream"]

_ROOMS = {
    "Sampling": "inference.sampling",
    "generate": "inference.generate",
    "lm": "evaluation.harness",
    "load": "checkpoint.read",
    "stream": "inference.generate",
}


def __getattr__(name: str) -> Any:
    """Import an attribute on first use, so that `gptstar --help` does not wait for torch."""
    if name == "results":
        return import_module("gptstar.results")
    if name in _ROOMS:
        return getattr(import_module(f"gptstar.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List all names, including those imported on first use."""
    return sorted({*globals(), *__all__})
