"""Runs and evaluations as pandas frames: what a notebook begins with.

```python
from gptstar import results

runs = results.runs("runs/lengths")  # a line for each run: state, losses, speed, every setting
results.effects(runs)  # what each setting changed, with 95 % intervals over seeds
```

Each function takes run directories, folders that hold some at any depth, folders where `evaluate.py output=…` wrote,
their `results.json`, patterns and lists, one or several. Where there is nothing, a frame has its columns and no line,
and a `MissingResultsWarning` says how to get what is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptstar.results.arm_verdicts import verdicts as verdicts
    from gptstar.results.attention_heads import heads as heads
    from gptstar.results.comparison import compare as compare
    from gptstar.results.evaluations import lengths as lengths
    from gptstar.results.evaluations import tasks as tasks
    from gptstar.results.factors import effects as effects
    from gptstar.results.frames import curves as curves
    from gptstar.results.frames import runs as runs
    from gptstar.results.frames import varied as varied
    from gptstar.results.loaded import DamagedWarning as DamagedWarning
    from gptstar.results.recall_arms import recall_rates as recall_rates
    from gptstar.results.recall_frame import recall as recall
    from gptstar.results.sources import MissingResultsWarning as MissingResultsWarning
    from gptstar.results.sources import Source as Source

_ROOMS = {
    "DamagedWarning": "loaded",
    "MissingResultsWarning": "sources",
    "Source": "sources",
    "compare": "comparison",
    "curves": "frames",
    "effects": "factors",
    "heads": "attention_heads",
    "lengths": "evaluations",
    "recall": "recall_frame",
    "recall_rates": "recall_arms",
    "runs": "frames",
    "tasks": "evaluations",
    "varied": "frames",
    "verdicts": "arm_verdicts",
}

__all__ = list(_ROOMS)

if not TYPE_CHECKING:  # which would take any name for one of these

    def __getattr__(name: str) -> object:
        """Import on first use, so that `gptstar runs` need not wait for pandas and torch."""
        if name in _ROOMS:
            return getattr(import_module(f"gptstar.results.{_ROOMS[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is imported on first use, too."""
    return sorted({*globals(), *__all__})
