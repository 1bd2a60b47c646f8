"""Whether arms of a study use a context longer than they were trained with: over seeds and over units of text."""

import functools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gptstar.evaluation.length.config import CUTS
from gptstar.evaluation.length.verdicts import DELTA, TRUNCATED, judged
from gptstar.evaluation.statistics.crossed import Crossed, crossed_ratio
from gptstar.evaluation.statistics.effects import blocked_effect
from gptstar.evaluation.statistics.intervals import accuracy_interval
from gptstar.evaluation.statistics.paired import holm
from gptstar.results.arms import CONTEXT, SEED, arms_of, without_seed
from gptstar.results.evaluations import frame_of, readings_of
from gptstar.results.frames import runs_of, varied
from gptstar.results.loaded import Loaded
from gptstar.results.recall_frame import recall_of
from gptstar.results.sources import Source
from gptstar.results.tried import at_best_rate, counted

VERDICT_FIGURES = (
    *("study", "trained_at", "context_length", "multiple", "n_seeds", "n_units"),
    *("full", "truncated", "cut", "cut_with_sinks", "best"),
    *("difference", "low", "high", "p", "p_holm", "change", "change_low", "change_high"),
    *("recall", "verdict", "reason"),
)

CONTROLS = (*CUTS, TRUNCATED)


def verdicts(*sources: Source, delta: float = DELTA, recall: pd.DataFrame | None = None) -> pd.DataFrame:
    """Say of each arm whether it uses what is beyond its training context.

    Args:
        sources: as for `lengths`: runs that were read with `controls=true`, and their evaluations. Runs with the tag
            `tuning` are left out; of several learning rates an arm's best counts.
        delta: nats per token below which a difference counts as none; to be fixed before the losses are known.
        recall: a frame as `gptstar.results.recall` returns it; by default the frame for the same sources.

    Returns:
        A line for each study, arm, training context and longer context: first a column for each setting that was varied
        but for the seed, then those of `VERDICT_FIGURES`. `full`, `truncated`, `cut` and `cut_with_sinks` are losses in
        nats per token, means over seeds. `difference` is `full` less that of `best`, the control with the lowest loss,
        with its 95 % interval over seeds and units of text from `low` to `high` (over units alone for a single seed)
        and its p, which `p_holm` adjusts for all lines of the frame. `change` is `full` less `truncated`, likewise:
        the change of the loss since the training context. `recall` is the share of right answers where the pair asked
        for is farther away than the training context, a mean over seeds; NaN if it was not measured. `verdict` is
        `uses`, `ignores`, `breaks` or `can't tell`, by the rule of `gptstar.evaluation.length.verdicts`, and `reason`
        says why it can't be told. If nothing was read beyond a training context with fixed targets, a
        `MissingResultsWarning` says how to.

    Raises:
        ConfigError: a source does not exist.
    """
    advice = (
        "train with reading.controls=true reading.protocol=fixed_targets reading.multiples=[1,2,4,8], or run "
        "`python evaluate.py evaluation=length evaluation.protocol=fixed_targets evaluation.controls=true "
        "checkpoint=RUN`"
    )
    make = functools.partial(verdicts_of, delta=delta, recall=recall)
    return frame_of(sources, make, "reading with controls", advice)


def verdicts_of(found: Loaded, *, delta: float = DELTA, recall: pd.DataFrame | None = None) -> pd.DataFrame:
    """Make the frame of `verdicts`."""
    recall = recall_of(found) if recall is None else recall
    runs, lengths = runs_of(found), readings_of(found)
    if not runs.empty and not lengths.empty:
        runs = counted(runs[runs["state"] == "finished"])
        has_fixed_targets = lengths["study"].str.startswith("fixed_targets") & (lengths["counts"].map(len) > 0)
        lengths = lengths[has_fixed_targets & (lengths["scaling"] == "none")]
    if runs.empty or lengths.empty:
        return pd.DataFrame(columns=list(VERDICT_FIGURES))
    tuned, factors = at_best_rate(runs, varied(runs))
    keys = [each for each in without_seed(factors) if each != CONTEXT]
    read = lengths.merge(tuned[["run", "began", *factors]], on="run")
    cells = list(_cells(read, keys, factors))
    adjusted = holm([math.nan if each.difference is None else each.difference.p for each in cells])
    lines = [_line(cell, p, delta, _beyond(recall, cell)) for cell, p in zip(cells, adjusted, strict=True)]
    return pd.DataFrame(lines, columns=[*keys, *VERDICT_FIGURES])


@dataclass(frozen=True)
class Cell:
    """An arm at one context length beyond its training context.

    Attributes:
        head: the arm's settings, and the columns up to `multiple`.
        runs: names of the runs of each seed.
        n_units: independent units of text.
        losses: by context, means over seeds.
        difference: full less the control `best`; None if a control is lacking.
        change: full less truncated.
    """

    head: Mapping[str, Any]
    runs: Mapping[Hashable, Sequence[str]]
    n_units: int
    losses: Mapping[str, float]
    best: str
    difference: Crossed | None
    change: Crossed


def _cells(frame: pd.DataFrame, keys: Sequence[str], factors: Sequence[str]) -> Iterator[Cell]:
    """Compare every arm of every study with its controls; `frame` has the readings of runs with their settings."""
    for study, of_study in frame.groupby("study", sort=False):
        for _, of_arm in arms_of(of_study, keys):
            for (trained_at, counts), rows in of_arm.groupby(["trained_at", "counts"], sort=True):
                head = {key: rows[key].iloc[0] for key in keys} | {"study": study, "trained_at": trained_at}
                seeds = rows[SEED] if SEED in factors else pd.Series(0, index=rows.index)
                rows = rows.assign(of_seed=seeds)
                for length in sorted(rows.loc[rows["multiple"] > 1, "context_length"].unique()):
                    at = head | {"context_length": length, "multiple": length / trained_at}
                    cell = _cell(at, rows, np.asarray(counts, dtype=float))
                    if cell is not None:
                        yield cell


def _cell(head: Mapping[str, Any], rows: pd.DataFrame, counts: np.ndarray) -> Cell | None:
    """Compare one arm with its controls at one length; None if no seed was read both there and at its training context.

    Args:
        rows: of the arm, at all lengths, with the column `of_seed`.
        counts: `(unit,)`: targets.
    """
    here = rows[rows["context_length"] == head["context_length"]]
    parts = {context: here[here["context"] == context] for context in ("full", *CUTS)}
    parts[TRUNCATED] = rows[(rows["context"] == "full") & (rows["context_length"] == head["trained_at"])]
    sums = {context: _sums(part) for context, part in parts.items() if len(part)}
    if not {"full", TRUNCATED} <= {*sums}:
        return None
    seeds = sorted(set.intersection(*(set(each) for each in sums.values())), key=str)
    if not seeds:
        return None
    tables = {context: np.stack([of_seed[seed] for seed in seeds]) for context, of_seed in sums.items()}
    losses = {context: float(table.sum() / (len(seeds) * counts.sum())) for context, table in tables.items()}
    best = min((each for each in losses if each != "full"), key=lambda each: losses[each])
    difference = crossed_ratio(tables[best], tables["full"], counts) if {*CONTROLS} <= {*tables} else None
    change = crossed_ratio(tables[TRUNCATED], tables["full"], counts)
    runs = {seed: list(here.loc[here["of_seed"] == seed, "run"].unique()) for seed in seeds}
    return Cell(head, runs, len(counts), losses, best, difference, change)


def _sums(rows: pd.DataFrame) -> dict[Hashable, np.ndarray]:
    """The losses of each seed by unit of text, `(unit,)`, in nats; runs that differ in nothing count as their mean."""
    return {
        seed: np.mean([np.asarray(each, dtype=float) for each in of_seed], axis=0)
        for seed, of_seed in rows.groupby("of_seed")["sums"]
    }


def _line(cell: Cell, p_holm: float, delta: float, recalled: tuple[float, bool | None]) -> dict[str, Any]:
    recall, recalls = recalled
    difference = None if cell.difference is None else cell.difference.paired
    verdict, reason = judged(difference, cell.change.paired, p_holm, recalls, delta=delta)
    figures = {
        key: math.nan if difference is None else getattr(difference, key) for key in ("difference", "low", "high", "p")
    }
    return {
        **{context: cell.losses.get(context, math.nan) for context in ("full", *CONTROLS)},
        **cell.head,
        **figures,
        "n_seeds": len(cell.runs),
        "n_units": cell.n_units,
        "best": cell.best,
        "p_holm": p_holm,
        "change": cell.change.value,
        "change_low": cell.change.low,
        "change_high": cell.change.high,
        "recall": recall,
        "verdict": verdict,
        "reason": reason,
    }


def _beyond(recall: pd.DataFrame | None, cell: Cell) -> tuple[float, bool | None]:
    """Find how often an arm recalls a pair that is farther away than its training context, and whether above chance.

    Above chance is the lower end of the 95 % interval: over seeds, or of one seed over texts.
    """
    if recall is None or recall.empty:
        return math.nan, None
    multiple = cell.head["multiple"]
    here = recall[(recall["test"] == "pairs") & (recall["multiple"] == multiple) & (recall["depth"] < 1 - 1 / multiple)]
    gains: dict[Hashable, dict[Hashable, float]] = {}
    shares, is_above = [], False
    for seed, runs in cell.runs.items():
        texts = here[here["run"].isin(runs)]
        if texts.empty:
            continue
        n, chance = int(texts["items"].sum()), float(texts["chance"].mean())
        n_right = round(float((texts["accuracy"] * texts["items"]).sum()))
        shares.append(n_right / n)
        gains[seed] = {"": shares[-1] - chance}
        is_above = accuracy_interval([1] * n_right + [0] * (n - n_right)).low > chance
    if not shares:
        return math.nan, None
    if len(shares) > 1:
        is_above = blocked_effect(gains).low > 0
    return sum(shares) / len(shares), is_above
