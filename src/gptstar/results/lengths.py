"""Arms beyond the training context: each against itself there, and against the others, paired by seed."""

import math
from collections.abc import Hashable, Iterator, Sequence

import pandas as pd

from gptstar.evaluation.statistics.effects import blocked_effect
from gptstar.results.effects import SEED, effect_table, effects

CONTEXT = "data.context_length"


def against_training(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Find the change against the training context of each arm and multiple: paired within runs, over cells and seeds.

    Args:
        lengths: as of `frames.lengths`.
    """
    arms = [each for each in factors if each not in (SEED, CONTEXT)]
    merged = lengths.merge(runs[["run", *arms, *([SEED] if SEED in runs else [])]], on="run")
    lines = []
    for name, group in merged.groupby([*arms, "rotary_scaling"], sort=False, dropna=False):
        lines += [dict(zip([*arms, "rotary_scaling"], name, strict=True)) | each for each in _changes(group)]
    return pd.DataFrame(lines)


def _changes(group: pd.DataFrame) -> Iterator[dict[str, object]]:
    at_training = group[group["multiple"] == 1].set_index("run")["loss"]
    for multiple in sorted(each for each in group["multiple"].unique() if each > 1):
        here = group[group["multiple"] == multiple]
        here = here.assign(change=here["loss"] - here["run"].map(at_training)).dropna(subset=["change"])
        if here.empty:
            continue
        by_seed: dict[Hashable, dict[Hashable, float]] = {}
        for line in here.to_dict("records"):
            by_seed.setdefault(line.get(SEED, 0), {})[line["trained_at"]] = line["change"]
        found = blocked_effect(by_seed)
        yield {
            "context": f"{multiple:g} ×",
            "change": f"{found.value:+.4f}",
            "95 % interval": "" if math.isnan(found.low) else f"{found.low:+.4f} to {found.high:+.4f}",
            "p": "" if math.isnan(found.p) else f"{found.p:.2g}",
            "seeds": found.n_seeds,
            "cells": found.n_cells,
            "": found.verdict,
        }


def between_arms(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], against: str | None = None
) -> pd.DataFrame:
    """Compare arms with each other at every context length, as `effects` does on the validation loss.

    Args:
        runs: each arm at one learning rate.
        lengths: as of `frames.lengths`, with the same targets for all runs.
        factors: all that was varied but the rate.

    Returns:
        A line for each level and multiple of the training context, `context` first; empty where no pair was read.
    """
    merged = lengths.merge(runs[["run", "began", *factors]], on="run")
    tables = []
    for multiple, here in merged.groupby("multiple"):
        found = effects(here, [*factors, "rotary_scaling"], "loss", against=against)
        table = effect_table([each for each in found if each.factor not in (CONTEXT, "rotary_scaling")])
        table.insert(0, "context", f"{multiple:g} ×")
        tables.append(table)
    found_any = [table for table in tables if not table.empty]
    return pd.concat(found_any, ignore_index=True) if found_any else pd.DataFrame()
