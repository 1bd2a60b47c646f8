"""The section of a report on whether a context beyond the training context is used."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from gptstar.evaluation.length.verdicts import DELTA
from gptstar.evaluation.statistics.effects import Effect
from gptstar.evaluation.tables import UNDEFINED
from gptstar.results.arm_verdicts import VERDICT_FIGURES, verdicts_of
from gptstar.results.factors import effect_text
from gptstar.results.loaded import Loaded
from gptstar.results.section import Section

EXPLAINED = (
    "Each arm against itself on the same targets, with attention cut at the training context, without and with the "
    "text's first tokens, and truncated to it; the best of the three counts. Intervals are of 95 %, over seeds and "
    "text (of one seed: over text alone); p is adjusted for all lines (Holm). *Uses*: better than the best control, "
    f"and recall beyond the training context above chance. *Ignores*: within ± {DELTA:g} nats of it, with the choice "
    f"of the best allowed for. *Breaks*: worse than truncated by more than {DELTA:g} nats."
)


def verdict_sections(found: Loaded) -> Iterator[Section]:
    """Show the verdicts of runs that were read with controls."""
    frame = verdicts_of(found)
    if frame["cut"].isna().all():
        return
    frame = frame[frame["cut"].notna() | (frame["verdict"] == "undefined")]
    keys = [key for key in frame.columns if key not in VERDICT_FIGURES]
    if frame["study"].nunique() > 1:
        keys = ["study", *keys]
    table = pd.DataFrame([{key: line[key] for key in keys} | _cells(line) for line in frame.to_dict("records")])
    yield Section("Does it use what is far away?", EXPLAINED, table=table)


def _cells(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "trained at": f"{line['trained_at']:,.0f}",
        "context": f"{line['multiple']:g} ×",
        "full": UNDEFINED if math.isnan(line["full"]) else f"{line['full']:.4f}",
        "best control": line["best"].replace("_", " "),
        "full − best": _text(line, "difference", "low", "high"),
        "p": "" if math.isnan(line["p_holm"]) else f"{line['p_holm']:.2g}",
        "full − truncated": _text(line, "change", "change_low", "change_high"),
        "recall": "" if math.isnan(line["recall"]) else f"{100 * line['recall']:.0f} %",
        "seeds": line["n_seeds"],
        "units of text": f"{line['n_units']} (largest {100 * line['largest_unit']:.0f} %)",
        "": line["verdict"] + (f": {line['reason']}" if line["reason"] else ""),
    }


def _text(line: dict[str, Any], *keys: str) -> str:
    value, low, high = (line[key] for key in keys)
    return "" if math.isnan(value) else effect_text(Effect(value, low, high, math.nan, line["n_seeds"], 1))
