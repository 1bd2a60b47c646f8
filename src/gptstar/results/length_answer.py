"""The findings on context lengths in sentences: whether the loss holds, and what a shorter training context costs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from gptstar.evaluation.length.compare import equal_targets
from gptstar.evaluation.statistics.effects import Effect
from gptstar.results.arms import CONTEXT, SEED, arms_of
from gptstar.results.best_level import NATS, best_level, certainty
from gptstar.results.extrapolation import LOSS, changes, have_equal_targets, reading_keys, readings
from gptstar.results.factors import effect_text
from gptstar.results.tried import at_best_rate

TOLERANCE = 0.02
"""The rise of the loss in nats per token up to which it is said to hold."""


@dataclass(frozen=True)
class Change:
    """The change of an arm's loss from its training context to the longest multiple of it that was read.

    Attributes:
        arm: the name of the arm; `all runs` if there is one.
        effect: the change, averaged over the training contexts.
        own: the change of each training context that is averaged, if there are several.
    """

    arm: str
    multiple: float
    effect: Effect
    own: dict[float, Effect]

    @property
    def subject(self) -> str:
        """What changes: `the loss of alibi, averaged over 3 training contexts,`."""
        of_arm = "" if self.arm == "all runs" else f" of {self.arm}"
        if not self.own:
            return f"the loss{of_arm or ' of the model'}"
        return f"the loss{of_arm}, averaged over {len(self.own)} training contexts,"

    @property
    def contexts_differ(self) -> bool:
        """Whether the changes of training contexts differ by more than half of their average, as opposite ones do."""
        values = [each.value for each in self.own.values()]
        return bool(values) and max(values) - min(values) > abs(self.effect.value) / 2


def longest_changes(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[Change]:
    """Yield the change of each arm that was read beyond its training context, in one study."""
    for arm, rows in arms_of(readings(runs, lengths, factors), reading_keys(factors)):
        by_multiple = changes(rows, factors)
        longest = max(by_multiple, default=0)
        if longest <= 1:
            continue
        own = {
            float(context): effect
            for context, of_context in rows.groupby("trained_at")
            if (effect := changes(of_context, factors).get(longest)) is not None
        }
        is_average = by_multiple[longest].n_cells > 1
        yield Change(arm, longest, by_multiple[longest], own if is_average else {})


def findings_on_lengths(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    """Yield sentences on the change of each arm's loss from the training context to the longest multiple of it.

    Where it is averaged over training contexts that differ, each of these has its own sentence.
    """
    for study, of_study in _studies(lengths):
        which = f" ({study})" if lengths["study"].nunique() > 1 else ""
        for change in longest_changes(runs, of_study, factors):
            yield (
                f"Read at {change.multiple:g} × {'their' if change.own else 'its'} training context{which}, "
                f"{change.subject} changes by {_nats(change.effect)}."
            )
            if change.contexts_differ:
                of_arm = "" if change.arm == "all runs" else f" of {change.arm}"
                for context, effect in change.own.items():
                    yield f"Trained at {context:,.0f} tokens, the loss{of_arm} changes by {_nats(effect)}."


def _nats(effect: Effect) -> str:
    return f"{effect_text(effect)} {NATS} ({certainty(effect)})"


def findings_on_contexts(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    """Yield sentences that compare training contexts, all reading the same targets with the same length.

    The lengths are the longest that all training contexts were read at, and the longest training context.
    """
    if CONTEXT not in factors:
        return
    tuned, left = at_best_rate(runs[runs["state"] == "finished"], factors)
    for _, of_study in _studies(lengths):
        if not have_equal_targets(of_study):
            continue
        for arm, rows in arms_of(readings(tuned, of_study, left), reading_keys(left)):
            yield from _on_contexts("" if arm == "all runs" else f"For {arm}: ", rows, left)


def _on_contexts(arm: str, rows: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    n_contexts = rows.groupby("context_length")["trained_at"].nunique()
    shared = n_contexts.index[n_contexts == rows["trained_at"].nunique()]
    named = {float(max(shared, default=0)): "the longest length that all were read at"}
    named.setdefault(float(rows["trained_at"].max()), "the longest training context")
    for length, name in named.items():
        here = rows[rows["context_length"] == length]
        how = f"all reading {length:,.0f} tokens ({name})"
        if length in shared and (text := best_level(here, CONTEXT, [CONTEXT, *({SEED} & {*factors})], LOSS, how)):
            yield (f"{arm}{text[0].lower()}{text[1:]}" if arm else text) + "."


def on_targets(lengths: pd.DataFrame) -> str:
    """Return sentences on whether the losses of one study compare across training contexts, and in which unit."""
    if have_equal_targets(lengths):
        return (
            f"All runs scored the same targets: losses are in {NATS}, and training contexts compare at equal lengths."
        )
    scored = "It is not known whether all runs scored the same targets"
    if "" not in set(lengths["targets"]):
        scored = "Runs of other training contexts scored other targets"
    return (
        f"{scored}, so these are bits per byte, and differences between training contexts include those between the "
        f"targets. {equal_targets(lengths['context_length'])}."
    )


def limits_of_lengths(lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    """Yield sentences on what losses at context lengths don't show."""
    if lengths.empty:
        return
    if CONTEXT in factors and not any(have_equal_targets(of_study) for _, of_study in _studies(lengths)):
        scored = "It is not known which targets were scored at context lengths"
        if "" not in set(lengths["targets"]):
            scored = "The runs of each training context scored other targets at context lengths"
        yield (
            f"{scored}, so training contexts are not compared at the same length. "
            f"{equal_targets(lengths['context_length'])}."
        )
    if SEED in factors:
        yield "All seeds read the same text, so intervals over seeds at context lengths do not cover other text."


def whether_it_holds(change: Change) -> str:
    """Return a sentence that begins with yes, no or unknown: whether the loss rises by `TOLERANCE` at most."""
    effect = change.effect
    if math.isnan(effect.low):
        verdict, bound = "Unknown", "one seed gives no interval"
    elif effect.high <= TOLERANCE:
        verdict, bound = "Yes", f"it rises by no more than {TOLERANCE:g}"
    elif effect.low > TOLERANCE:
        verdict, bound = "No", f"it rises by more than {TOLERANCE:g}"
    else:
        verdict, bound = "Unknown", f"the interval includes rises below and above {TOLERANCE:g}"
    at = f"at {change.multiple:g} × the training context"
    return f"{verdict}: {at}, {change.subject} changes by {_nats(effect)}; {bound}."


def _studies(lengths: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [] if lengths.empty else [(str(study), rows) for study, rows in lengths.groupby("study", sort=False)]
