"""What a report says of recall: which arms learned it, and how far those recall."""

from collections.abc import Iterator, Sequence

import pandas as pd

from gptstar.evaluation.recall.config import LEARNED
from gptstar.results.arms import arms_of
from gptstar.results.recall_arms import arm_keys, rates, recall_figure
from gptstar.results.section import Section
from gptstar.results.shares import percent_text

MARK = f"{100 * LEARNED:.0f} % right at the training context"
FAILED = "did not learn"


def recall_sections(runs: pd.DataFrame, recall: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    """Show recall by arm, in a table and a plot for each test; the arguments are those of `rates`."""
    found = rates(runs, recall, factors)
    for (test, pairs), of_test in found.groupby(["test", "pairs"], sort=False):
        is_passkey = test == "passkey"
        guess = "among all words" if is_passkey else f"among the {pairs} values of a text"
        text = (
            "Right answers by the length of the text, as multiples of the training context, over all depths: means of "
            f"the seeds that learned ({MARK}), with 95 % intervals by Student's t over these seeds, cut at 0 and 100 "
            "%; of one seed, over texts. Where all seeds score the same, the interval has no width. A guess "
            f"{guess} is right in {percent_text(float(of_test['chance'].iloc[0]))}."
        )
        yield Section(
            "Passkey" if is_passkey else f"Recall among {pairs} pairs",
            text,
            table=rate_table(of_test),
            picture=recall_figure(of_test),
        )


def rate_table(found: pd.DataFrame) -> pd.DataFrame:
    """Make a line for each arm of `recall_rates`, of one test with one number of pairs."""
    keys = arm_keys(found)
    multiples = sorted(found["multiple"].dropna().unique())
    lines = []
    for _, rows in arms_of(found, keys):
        first = rows.iloc[0]
        cells = {f"{multiple:g} ×": "" for multiple in multiples}
        cells |= {
            f"{multiple:g} ×": percent_text(*shares)
            for multiple, *shares in rows[["multiple", "accuracy", "low", "high"]].itertuples(index=False)
            if multiple == multiple
        }
        said = f"{first['learned']} of {first['seeds']}" if first["learned"] else FAILED
        lines.append({**first[keys], "seeds": first["seeds"], "learned": said, **cells})
    return pd.DataFrame(lines)


def findings_on_recall(found: pd.DataFrame) -> Iterator[str]:
    """Say for each arm of `recall_rates` whether it learned, and what it recalls at the longest texts."""
    for (test, _), of_test in found.groupby(["test", "pairs"], sort=False):
        what = "the passkey" if test == "passkey" else "recall"
        for arm, rows in arms_of(of_test, arm_keys(found)):
            first, longest = rows.iloc[0], rows.iloc[-1]
            if not first["learned"]:
                yield f"{arm} did not learn {what} ({MARK}) in any of {first['seeds']} seeds."
                continue
            share = percent_text(longest["accuracy"], longest["low"], longest["high"])
            yield (
                f"{arm} learned {what} ({MARK}) in {first['learned']} of {first['seeds']} seeds, which have {share} "
                f"right at {longest['multiple']:g} ×; a guess has {percent_text(float(first['chance']))}."
            )
