"""Whether arms of a study use a context longer than they were trained with: over seeds and over units of text."""

import functools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from gptstar.evaluation.length.config import CONTROLS, TRUNCATED
from gptstar.evaluation.length.verdicts import CHOSEN, DELTA, bounds_of, judged
from gptstar.evaluation.statistics.crossed import Crossed, crossed_ratio
from gptstar.evaluation.statistics.effects import blocked_effect
from gptstar.evaluation.statistics.intervals import accuracy_interval
from gptstar.evaluation.statistics.paired import CONFIDENCE, holm
from gptstar.results.arms import CONTEXT, SEED, arms_of, without_seed
from gptstar.results.evaluations import frame_of, readings_of
from gptstar.results.frames import runs_of, varied
from gptstar.results.loaded import Loaded
from gptstar.results.recall_frame import recall_of
from gptstar.results.sources import Source
from gptstar.results.tried import at_best_rate, counted

VERDICT_FIGURES = (
    *("study", "trained_at", "context_length", "multiple", "n_seeds", "n_units", "largest_unit"),
    *("full", "truncated", "cut", "cut_with_sinks", "best"),
    *("difference", "low", "high", "p", "p_holm", "bound_low", "bound_high", "change", "change_low", "change_high"),
    *("recall", "verdict", "reason"),
)


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
        and its p, which `p_holm` adjusts for all lines of the frame. `bound_low` and `bound_high` are the ends that
        *ignores* compares with delta, which allow for the choice of the best control. `change` is `full` less
        `truncated`, likewise. `largest_unit` is the share of the largest unit of text in all targets. `recall` is the
        share of right answers where the pair asked for is farther away than the training context, a mean over seeds;
        NaN if it was not measured. `verdict` is `uses`, `ignores`, `breaks`, `can't tell` or, where the arm has no
        positions, `undefined`, by the rule of `gptstar.evaluation.length.verdicts`, and `reason` says why it can't be
        told. Runs of earlier versions have no reading of the truncated text: for them the reading at the training
        context stands for it. If nothing was read beyond a training context with fixed targets, a
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
    runs, lengths = runs_of(found), readings_of(found, undefined=True)
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
        largest: the largest unit's share of all targets.
        difference: full less the control `best`; None if a control is lacking.
        bounds: as in `gptstar.evaluation.length.verdicts.Verdict`.
        change: full less truncated; None where full is undefined.
    """

    head: Mapping[str, Any]
    runs: Mapping[Hashable, Sequence[str]]
    n_units: int
    losses: Mapping[str, float]
    largest: float
    best: str = ""
    difference: Crossed | None = None
    bounds: tuple[float, float] | None = None
    change: Crossed | None = None


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
    """Compare one arm with its controls at one length; None if no seed was read both there and truncated.

    Args:
        rows: of the arm, at all lengths, with the column `of_seed`.
        counts: `(unit,)`: targets.
    """
    here = rows[rows["context_length"] == head["context_length"]]
    is_full = here["context"] == "full"
    defined = here[here["is_defined"]]
    parts = {context: defined[defined["context"] == context] for context in ("full", *CONTROLS)}
    if not set(here.loc[is_full, "of_seed"]) <= set(parts[TRUNCATED]["of_seed"]):  # read by an earlier version
        at_training = (rows["context"] == "full") & (rows["context_length"] == head["trained_at"])
        parts[TRUNCATED] = rows[at_training & rows["is_defined"]]
    sums = {context: _sums(part) for context, part in parts.items() if len(part)}
    if "full" not in sums and is_full.any():
        sums = {context: each for context, each in sums.items() if context == TRUNCATED}  # of one that has no positions
    elif not {"full", TRUNCATED} <= {*sums}:
        return None
    seeds = sorted(set.intersection(*(set(each) for each in sums.values()) if sums else [set()]), key=str)
    if not seeds:
        return None
    tables = {context: np.stack([of_seed[seed] for seed in seeds]) for context, of_seed in sums.items()}
    losses = {context: float(table.sum() / (len(seeds) * counts.sum())) for context, table in tables.items()}
    runs = {seed: list(here.loc[here["of_seed"] == seed, "run"].unique()) for seed in seeds}
    return _compared(Cell(head, runs, len(counts), losses, float(counts.max() / counts.sum())), tables, counts)


def _compared(cell: Cell, tables: Mapping[str, np.ndarray], counts: np.ndarray) -> Cell:
    """Compare full with the controls, given the tables `(seed, unit)` of losses in nats by context."""
    if "full" not in tables:
        return cell
    full, best = tables["full"], min(tables.keys() - {"full"}, key=lambda each: (cell.losses[each], each))
    cell = replace(cell, best=best, change=crossed_ratio(tables[TRUNCATED], full, counts))
    if not {*CONTROLS} <= {*tables}:
        return cell
    at_95, at_chosen = (
        {str(each): crossed_ratio(tables[each], full, counts, confidence) for each in CONTROLS}
        for confidence in (CONFIDENCE, CHOSEN)
    )
    bounds = bounds_of((each.low for each in at_chosen.values()), (each.high for each in at_95.values()))
    return replace(cell, difference=at_95[best], bounds=bounds)


def _sums(rows: pd.DataFrame) -> dict[Hashable, np.ndarray]:
    """The losses of each seed by unit of text, `(unit,)`, in nats; runs that differ in nothing count as their mean."""
    return {
        seed: np.mean([np.asarray(each, dtype=float) for each in of_seed], axis=0)
        for seed, of_seed in rows.groupby("of_seed")["sums"]
    }


def _line(cell: Cell, p_holm: float, delta: float, recalled: tuple[float, bool | None]) -> dict[str, Any]:
    recall, recalls = recalled
    difference, change = (each.paired if each else None for each in (cell.difference, cell.change))
    verdict, reason = judged(difference, change, cell.bounds, p_holm, recalls, delta) if change else ("undefined", "")
    bound_low, bound_high = cell.bounds or (math.nan, math.nan)
    return {
        **{context: cell.losses.get(context, math.nan) for context in ("full", *CONTROLS)},
        **cell.head,
        **{key: getattr(difference, key, math.nan) for key in ("difference", "low", "high", "p")},
        "n_seeds": len(cell.runs),
        "n_units": cell.n_units,
        "largest_unit": cell.largest,
        "best": cell.best,
        "p_holm": p_holm,
        "bound_low": bound_low,
        "bound_high": bound_high,
        "change": getattr(change, "difference", math.nan),
        "change_low": getattr(change, "low", math.nan),
        "change_high": getattr(change, "high", math.nan),
        "recall": recall,
        "verdict": verdict,
        "reason": reason,
    }


def _beyond(recall: pd.DataFrame | None, cell: Cell) -> tuple[float, bool | None]:
    """Find how often an arm recalls a pair that is farther away than its training context, and whether above chance.

    Above chance are the lower ends of two 95 % intervals: over seeds, where there are several, and over texts. All
    depths and seeds have the same texts, so only those of one depth count as independent.
    """
    if recall is None or recall.empty:
        return math.nan, None
    multiple = cell.head["multiple"]
    here = recall[(recall["test"] == "pairs") & (recall["multiple"] == multiple) & (recall["depth"] < 1 - 1 / multiple)]
    shares, gains = list[float](), dict[Hashable, dict[Hashable, float]]()
    of_seeds = [(seed, texts) for seed, runs in cell.runs.items() if len(texts := here[here["run"].isin(runs)])]
    if not of_seeds:
        return math.nan, None
    for seed, texts in of_seeds:
        shares.append(float((texts["accuracy"] * texts["items"]).sum() / texts["items"].sum()))
        gains[seed] = {"": shares[-1] - float(texts["chance"].mean())}
    counted = pd.concat([texts for _, texts in of_seeds])
    share, chance, n = sum(shares) / len(shares), float(counted["chance"].mean()), int(counted["items"].max())
    n_right = math.floor(share * n)  # conservative
    is_above = accuracy_interval([1] * n_right + [0] * (n - n_right)).low > chance
    if len(gains) > 1:
        is_above = is_above and blocked_effect(gains).low > 0
    return share, is_above
