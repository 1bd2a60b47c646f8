"""A study of heads as tables, for the terminal and as Markdown."""

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from gptstar.evaluation.heads.prediction import BFLOAT16, NORMAL, ROUNDING, SUBNORMAL
from gptstar.evaluation.statistics.intervals import Interval
from gptstar.evaluation.tables import UNDEFINED, markdown_table
from gptstar.terminal import in_markdown

if TYPE_CHECKING:
    from gptstar.evaluation.heads.figures import HeadResult, HeadsResult
    from gptstar.evaluation.heads.study import HeadsStudy

ARITHMETIC = (
    f"For equal content a float32 weight is zero beyond {NORMAL:.1f}/m tokens, m the head's slope, or beyond "
    f"{SUBNORMAL:.1f}/m where subnormals are kept, and beyond {BFLOAT16:.1f}/m in bfloat16; beyond {ROUNDING:.1f}/m it "
    "changes no sum. A head's content can move these distances either way. Beyond an attention window all "
    "weights are zero but those on sinks, whatever the positions."
)

CAPTION = (
    "beyond, first: mean share of the weight beyond the training context, and on the first token; distance: mean, in "
    "tokens; blind, unseen: heads without any weight there"
)


def heads_table(found: "HeadsStudy") -> Table:
    """Return a table of all heads at each context length, for the terminal."""
    table = Table(title=Text(f"{found.name}, {found.positions} positions: where the weight of its heads goes"))
    has_prediction = found.reaches is not None
    table.caption = CAPTION + ("; in brackets: predicted" if has_prediction else "")
    for column in ("context", "×", "beyond", "first", "distance", "blind", "unseen"):
        table.add_column(column, justify="right")
    for result in found.lengths:
        cells = [f"{result.context_length:,}", f"{result.context_length / found.trained_at:.4g}"]
        table.add_row(*cells, *(_summary(result, has_prediction=has_prediction) if result.heads else [UNDEFINED]))
    return table


def _summary(result: "HeadsResult", *, has_prediction: bool) -> list[str]:
    heads, n = result.heads, len(result.heads)
    beyond = [each.beyond.value for each in heads if each.beyond is not None]
    cells = [_percent(sum(beyond) / n) if beyond else "", _percent(sum(each.first.value for each in heads) / n)]
    cells.append(f"{sum(each.mean_distance for each in heads) / n:,.1f}")
    blind, predicted = (sum(bool(getattr(h, name)) for h in heads) for name in ("is_blind", "predicted_blind"))
    cells.append(_of(blind, n, predicted if has_prediction else None) if beyond else "")
    unseen = sum(each.misses_first for each in heads)
    predicted = sum(bool(each.predicted_to_miss_first) for each in heads)
    return [*cells, _of(unseen, n, predicted if has_prediction else None)]


def _of(count: int, n: int, predicted: int | None) -> str:
    return f"{count} of {n}" + ("" if predicted is None else f" ({predicted})")


def heads_markdown(found: "HeadsStudy", text: str) -> str:
    """Return Markdown with every head at each context length, with intervals, and the predicted distances."""
    lines = ["# Where the weight of attention heads goes", ""]
    lines += [f"{found.name}, {found.positions} positions, trained at {found.trained_at:,} tokens. Text: {text}."]
    lines += [f"Intervals are of 95 %, over {found.units}. Products in float32.", ""]
    lines += [
        "*Beyond training*: the share of the weight at distances of the training context and more. *Blind*: every such "
        "weight is zero. *Unseen*: every weight on the window's first token is zero. *Reach*: the farthest distance "
        "with a weight above zero; *felt*: with one of 2^-24 or more, as a smaller one changes no sum."
    ]
    if found.reaches is not None:
        lines += ["", ARITHMETIC, "", *_predictions(found)]
    for result in found.lengths:
        lines += ["", f"## {result.context_length:,} tokens", ""]
        if not result.heads:
            lines.append(f"The model is {UNDEFINED} here.")
            continue
        lines += [f"{result.queries:,} queries; {result.seconds or 0:.1f} s, {(result.memory or 0) / 1e9:.2f} GB.", ""]
        columns = ["layer", "head", "beyond training", "first token", "mean distance", "reach", "felt", "blind"]
        columns += ["predicted", "unseen", "predicted"] if found.reaches is not None else ["unseen"]
        rows = [_cells(each, has_prediction=found.reaches is not None) for each in result.heads]
        lines += markdown_table(columns, rows)
    return in_markdown("\n".join(lines)) + "\n"


def _predictions(found: "HeadsStudy") -> list[str]:
    columns = ["head", "m", "changes nothing beyond", "zero beyond"]
    rows = [
        (
            f"{number}",
            "" if reach.slope is None else f"{reach.slope:.4g}",
            "" if math.isinf(reach.changes_nothing) else f"{reach.changes_nothing:,.0f}",
            f"{reach.farthest:,.0f}",
        )
        for number, reach in enumerate(found.reaches or (), start=1)
    ]
    return markdown_table(columns, rows)


def _cells(head: "HeadResult", *, has_prediction: bool) -> list[str]:
    cells = [f"{head.layer}", f"{head.head}", _interval(head.beyond), _interval(head.first)]
    cells += [f"{head.mean_distance:,.1f}", f"{head.reach:,}", f"{head.felt:,}", _yes(head.is_blind)]
    cells += [_yes(head.predicted_blind)] * has_prediction + [_yes(head.misses_first)]
    return cells + [_yes(head.predicted_to_miss_first)] * has_prediction


def _interval(share: Interval | None) -> str:
    if share is None:
        return ""
    if not share.high - share.low > 0:
        return _percent(share.value)
    return f"{_percent(share.value)} [{_percent(share.low)}, {_percent(share.high)}]"


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return f"{100 * share:.2f} %" if share >= 5e-4 else f"{100 * share:.1g} %"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
