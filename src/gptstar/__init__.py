"""Train, evaluate and study GPT* language models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptstar.checkpoint.format import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load` on first use, so that `gptstar --help` need not wait for torch."""
    if name == "load":
        from gptstar.checkpoint.format import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
