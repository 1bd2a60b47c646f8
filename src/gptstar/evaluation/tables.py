"""Results as tables for the terminal, and as JSON."""

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from gptstar.evaluation.length import LengthResult


def length_table(results: Sequence[LengthResult], trained_at: int | None) -> Table:
    """Loss at each context length, for the terminal."""
    table = Table(title="the same held-out tokens at each context length, ± two standard errors")
    for column in ("context", "×", "loss", "change", "perplexity", "bits/byte"):
        table.add_column(column, justify="right")
    for result in results:
        multiple = f"{result.context_length / trained_at:g}" if trained_at else ""
        loss = f"{result.loss:.3f} ± {2 * result.standard_error:.3f}"
        change = "" if result is results[0] else f"{result.change:+.3f} ± {2 * result.change_standard_error:.3f}"
        table.add_row(
            f"{result.context_length:,}",
            multiple,
            loss,
            change,
            f"{result.perplexity:.1f}",
            f"{result.bits_per_byte:.3f}",
        )
    return table


def to_json(figures: dict[str, Any]) -> str:
    """Figures as text; what is not a number becomes null, as JSON has no NaN."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, list):
            return [clean(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(figures), indent=2) + "\n"
