"""The picture of a study of heads, from its figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar.plots.heads import MOST_LABELS, Columns, HeadMap, TailLine, draw_heads
from gptstar.plots.lines import Point
from gptstar.plots.style import COLOURS, save

if TYPE_CHECKING:
    from gptstar.evaluation.heads.figures import HeadResult, HeadsResult
    from gptstar.evaluation.heads.study import HeadsStudy

MOST_MAPS = 3
"""The most maps in a picture; with many heads there are fewer."""


def plot_heads(found: "HeadsStudy", path: Path, text: str) -> None:
    """Save a picture: maps of the longest contexts, and how weight falls with distance at the longest.

    With slopes, columns are heads from the steepest slope on, and lines are means over layers; without, columns are
    heads by number, and lines are means over the heads of a layer.
    """
    read = [each for each in found.lengths if each.heads]
    if not read:
        return
    order, names, label = _columns(found, n_heads=max(each.head for each in read[0].heads))
    maps = [_map(each, order, found.trained_at) for each in read if each.context_length > found.trained_at]
    title = f"{found.name}: % of the weight beyond the training context ({found.trained_at:,})\n{text}"
    figure = draw_heads(
        maps[-min(MOST_MAPS, max(1, MOST_LABELS // len(order))) :],
        Columns(names, label),
        list(_tails(read[-1], found, order)),
        found.trained_at,
        title=title,
        longest=read[-1].context_length,
    )
    save(figure, path)


def slope_text(slope: float) -> str:
    """Format a slope as a fraction, such as 1/64."""
    return f"1/{1 / slope:.3g}" if slope < 1 else f"{slope:.3g}"


def _columns(found: "HeadsStudy", n_heads: int) -> tuple[list[int], list[str], str]:
    """Return the heads, numbered from 1, in the order of the columns, with their names and the title of these names."""
    slopes = found.slopes
    if slopes is None:
        heads = list(range(1, n_heads + 1))
        return heads, [str(head) for head in heads], "head"
    order = sorted(range(1, n_heads + 1), key=lambda head: -slopes[head - 1])
    return order, [slope_text(slopes[head - 1]) for head in order], "slope of the head"


def _map(result: "HeadsResult", order: Sequence[int], trained_at: int) -> HeadMap:
    layers = sorted({each.layer for each in result.heads})
    by_place = {(each.layer, each.head): each for each in result.heads}
    rows = [[by_place[layer, head] for head in order] for layer in layers]
    shares = [[each.beyond.value if each.beyond else 0.0 for each in row] for row in rows]
    title = f"{result.context_length:,} tokens ({result.context_length / trained_at:.3g} ×)"
    blind = [[bool(each.is_blind) for each in row] for row in rows]
    return HeadMap(title, shares, blind, [bool(each.predicted_blind) for each in rows[0]])


def _tails(result: "HeadsResult", found: "HeadsStudy", order: Sequence[int]) -> Iterator[TailLine]:
    """Return evenly chosen lines, as many as there are colours."""
    slopes = found.slopes
    has_slopes = slopes is not None
    groups = list(order) if has_slopes else sorted({each.layer for each in result.heads})
    n_lines = min(len(groups), len(COLOURS))
    chosen = [groups[round(n * (len(groups) - 1) / max(1, n_lines - 1))] for n in range(n_lines)]
    for group in chosen:
        members = [each for each in result.heads if (each.head if has_slopes else each.layer) == group]
        points = [Point(edge, _mean_tail(members, n)) for n, edge in enumerate(result.edges)]
        if slopes is None or found.reaches is None:
            yield TailLine(f"layer {group}", points)
            continue
        reach = found.reaches[group - 1]
        unfelt = reach.changes_nothing if reach.changes_nothing <= reach.farthest else None
        yield TailLine(
            f"slope {slope_text(slopes[group - 1])}", points, unfelt, None if reach.sinks else reach.farthest
        )


def _mean_tail(members: Sequence["HeadResult"], number: int) -> float:
    return sum(each.tails[number] for each in members) / len(members)
