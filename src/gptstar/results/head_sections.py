"""What a report says of attention heads: how many are blind beyond the training context, measured and predicted."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from gptstar.plots.heads import HeadMap, draw_head_maps
from gptstar.plots.style import Figure
from gptstar.results.arms import SEED, arms_of, measured, without_seed
from gptstar.results.extrapolation import readings
from gptstar.results.section import Section
from gptstar.results.shares import mean_share, percent_text

COUNTED = {
    "blind": "is_blind",
    "predicted blind": "predicted_blind",
    "unseen": "misses_first",
    "predicted unseen": "predicted_to_miss_first",
}
"""Columns of the table that count heads, by what they count."""

TEXT = (
    "Blind: every weight of a head at distances of the training context and more is zero. Unseen: every weight on the "
    "first token of the text is. Predicted: by the head's slope and the attention window, for equal content; positions "
    "without either have no prediction. Shares of the weight beyond the training context and on the first token are "
    "means over heads and seeds, with 95 % intervals by Student's t over seeds where there are several."
)


def head_sections(runs: pd.DataFrame, heads: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    """Show where the weight of the heads of each arm goes; the arguments are the frames of these names."""
    rows, keys = heads_by_arm(runs, heads, factors)
    if not rows.empty:
        yield Section("Attention heads", TEXT, table=head_table(rows, keys), picture=head_figure(rows, keys))


def heads_by_arm(runs: pd.DataFrame, heads: pd.DataFrame, factors: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Add to heads read beyond the training context what was varied; and return what tells arms apart.

    Args:
        runs: if empty, arms are kinds of positions and each study is a seed.
    """
    of_head = ["run", "trained_at", "context_length", "layer", "head"]
    beyond = heads[heads["beyond"].notna()].drop_duplicates(of_head, keep="last")
    rows = beyond.assign(**{SEED: beyond["run"]}) if runs.empty else readings(runs, beyond, factors)
    return rows if SEED in rows else rows.assign(**{SEED: 0}), without_seed(factors) or ["positions"]


def head_table(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Make a line for each arm at each multiple of its training context, from what `heads_by_arm` returns."""
    return pd.DataFrame(
        [
            {**here[keys].iloc[0], "context": f"{multiple:g} ×", **_counts(here), **_shares(here)}
            for _, of_arm in arms_of(rows, keys)
            for multiple, here in of_arm.groupby("multiple")
        ]
    )


def _counts(rows: pd.DataFrame) -> dict[str, str]:
    """How many heads of a run are blind, and so on; from the fewest of a run to the most."""
    by_run = rows.groupby("run")
    sizes = by_run.size()
    return {name: _range(by_run[column].agg(_count)) for name, column in COUNTED.items()} | {"heads": _range(sizes)}


def _count(values: pd.Series) -> float:
    """NaN where it is not known, as of kinds without a prediction."""
    return math.nan if values.isna().all() else float(values.eq(True).sum())


def _range(counts: pd.Series) -> str:
    if counts.isna().all():
        return ""
    low, high = counts.min(), counts.max()
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _shares(rows: pd.DataFrame) -> dict[str, str]:
    means = rows.groupby([SEED, "run"])[["beyond", "first"]].mean().reset_index()
    shares = {name: mean_share(means, name) for name in ("beyond", "first") if len(measured(means, name))}
    named = {"beyond": "weight beyond training", "first": "weight on the first token"}
    return {named[name]: percent_text(mean.value, mean.low, mean.high) for name, mean in shares.items()}


def head_figure(rows: pd.DataFrame, keys: Sequence[str]) -> Figure | None:
    """Draw a map of the heads of each arm at the longest context, means over seeds; None where shapes differ.

    A head is marked blind that is in every seed.
    """
    maps = []
    for name, of_arm in arms_of(rows, keys):
        here = of_arm[of_arm["multiple"] == of_arm["multiple"].max()]
        shares = here.pivot_table("beyond", "layer", "head", aggfunc="mean")
        place: dict[str, Any] = {"index": "layer", "columns": "head"}
        blind = here.assign(blind=here["is_blind"].eq(True)).pivot_table("blind", **place, aggfunc="min")
        predicted = here.groupby("head")["predicted_blind"].agg(lambda values: bool(values.eq(True).all()))
        title = f"{name}, {here['multiple'].iloc[0]:g} ×"
        maps.append(HeadMap(title, shares.to_numpy().tolist(), blind.to_numpy().tolist(), list(predicted)))
    sizes = {(len(each.shares), len(each.shares[0])) for each in maps}
    return draw_head_maps(maps) if len(sizes) == 1 else None


def findings_on_heads(rows: pd.DataFrame, keys: Sequence[str]) -> Iterator[str]:
    """Say for each arm how many heads are blind at the longest context."""
    for name, of_arm in arms_of(rows, keys):
        here = of_arm[of_arm["multiple"] == of_arm["multiple"].max()]
        counts = _counts(here)
        predicted = f" (predicted: {counts['predicted blind']})" if counts["predicted blind"] else ""
        yield (
            f"Read at {here['multiple'].iloc[0]:g} ×, {counts['blind']} of {counts['heads']} heads of {name} give "
            f"tokens beyond the training context no weight{predicted}."
        )
