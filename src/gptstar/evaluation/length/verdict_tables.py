"""Verdicts as a table, for the terminal and as Markdown."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from gptstar.evaluation.length.config import CONTROLS, CUTS
from gptstar.evaluation.length.verdicts import DELTA, LEVEL, Verdict
from gptstar.evaluation.statistics.intervals import Interval
from gptstar.evaluation.statistics.paired import Paired
from gptstar.evaluation.tables import UNDEFINED, figure_text, half_text, markdown_table

LOSSES = ("full", *CONTROLS)
WORDS = {each: each.replace("_", " ") for each in LOSSES}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return a table of the verdict at each length beyond the training context, for the terminal."""
    several = len({each.name for each in verdicts}) > 1
    table = Table(title="does it use what is far away? ± half of the 95 % interval")
    for column in (*([""] if several else []), "context", "×", *WORDS.values(), "full − best"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("verdict")
    for verdict in verdicts:
        name = [Text(verdict.name)] if several else []
        difference = half_text(_interval(verdict.difference), "+") if verdict.difference else ""
        table.add_row(*name, *_head(verdict), *_losses(verdict, 3), difference, verdict.answer)
    return table


def reasons(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield a line for each reason why there is no verdict at some lengths."""
    for reason in dict.fromkeys(each.reason for each in verdicts if each.reason):
        where = ", ".join(
            dict.fromkeys(f"{each.name} at {each.context_length:,}" for each in verdicts if each.reason == reason)
        )
        yield f"Can't tell ({where}): {reason}."


def verdict_markdown(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the lines of the section of `results.md` on verdicts."""
    columns = ["curve", "context", "×", *WORDS.values(), "best control", "full − best", "p (Holm)", "full − truncated"]
    rows = [
        (
            *(each.name, *_head(each), *_losses(each, 4), WORDS.get(each.best, "")),
            *(_whole(each.difference), f"{each.p_holm:.2g}" if each.difference else "", _whole(each.change)),
            each.answer,
        )
        for each in verdicts
    ]
    return [
        "## Does it use what is far away?",
        "",
        f"The same targets with attention cut at the training context, without and with the first {max(CUTS.values())} "
        f"tokens, and truncated to it. *Uses*: better than the best of these (p < {LEVEL:g}, by Holm for all lines), "
        "and recall beyond the training context above chance. *Ignores*: the 95 % interval, widened for the choice of "
        f"the best of three, lies within ± {DELTA:g} nats. *Breaks*: worse than truncated by more than that, with its "
        "whole 95 % interval.",
        *(f"\n{line}" for line in reasons(verdicts)),
        "",
        *markdown_table([*columns, "verdict"], rows, n_left=1),
    ]


def _head(verdict: Verdict) -> tuple[str, str]:
    return f"{verdict.context_length:,}", f"{verdict.context_length / verdict.trained_at:.4g}"


def _losses(verdict: Verdict, digits: int) -> Iterator[str]:
    for context in LOSSES:
        yield f"{verdict.losses[context]:.{digits}f}" if context in verdict.losses else UNDEFINED


def _whole(paired: Paired | None) -> str:
    return figure_text(_interval(paired), 4, "+") if paired else ""


def _interval(paired: Paired) -> Interval:
    return Interval(paired.difference, paired.low, paired.high, paired.test)
