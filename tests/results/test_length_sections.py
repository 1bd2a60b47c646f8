"""What a report says of the targets that losses at context lengths are of."""

import pandas as pd
import pytest

from gptstar.results.length_sections import length_sections


def sections_on(study: str, targets: dict[int, str]) -> tuple[list[str], str]:
    """The headings of a report on two arms with these targets, by training context, and its first text."""
    arms = [(positions, context, seed) for positions in ("alibi", "rotary") for context in targets for seed in (0, 1)]
    runs = pd.DataFrame(arms, columns=["model.positions", "data.context_length", "seed"])
    runs = runs.assign(run=runs.index, began=runs.index, state="finished", validation_loss=4.0)
    lengths = [
        {"study": study, "run": run, "trained_at": context, "scaling": "none", "multiple": float(multiple)}
        | {"context_length": context * multiple, "loss": 4.0 + multiple, "reference": 64, "targets": targets[context]}
        for run, (_, context, _) in enumerate(arms)
        for multiple in (1, 2)
    ]
    factors = ["model.positions", *(["data.context_length"] if len(targets) > 1 else []), "seed"]
    found = list(length_sections(runs, pd.DataFrame(lengths), factors, None, "Explained."))
    return [section.heading for section in found], found[0].text


@pytest.mark.parametrize("study", ["disjoint, text x", "fixed_targets, targets 32, text room"])
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({64: "5d41"}, "The targets are the same for all runs."),
        ({64: "5d41", 128: "5d41"}, "The targets are the same for all runs."),
        ({64: "5d41", 128: "98f1"}, "The targets are the same for all runs of one training context."),
    ],
)
def test_arms_are_compared_on_targets_that_are_known(study: str, targets: dict[int, str], said: str) -> None:
    found, text = sections_on(study, targets)
    same = ["Training contexts, all reading the same length"] * (list(targets.values()) == ["5d41", "5d41"])
    assert found == ["Beyond the training context", "Does it hold?", *same, "Arms at each length"]
    assert said in text


def test_arms_are_not_compared_on_targets_that_are_not_known() -> None:
    found, text = sections_on("fixed_targets, targets 32, room 128, text x", {64: ""})
    assert found == ["Beyond the training context", "Does it hold?"]
    assert "It is not known whether the targets are the same for all runs." in text
