"""What a report says of the targets that losses at context lengths are of."""

import pandas as pd
import pytest

from gptstar.results.length_sections import length_sections

FACTORS = ["model.positions", "seed"]


def headings(study: str, targets: list[object]) -> tuple[list[str], str]:
    """The headings of a report on two arms of two seeds with these targets, and its first text."""
    runs = pd.DataFrame(
        {"run": list("abcd"), "began": list("abcd"), "state": "finished", "seed": [0, 1, 0, 1]}
        | {"model.positions": ["alibi", "alibi", "rotary", "rotary"], "validation_loss": [4.0, 4.1, 4.2, 4.4]}
    )
    lengths = pd.DataFrame(
        [
            {"study": study, "run": run, "trained_at": 64.0, "rotary_scaling": "none", "multiple": float(multiple)}
            | {"context_length": 64 * multiple, "loss": loss + multiple, "reference": 64.0, "targets": of_run}
            for run, loss, of_run in zip("abcd", (4.0, 4.1, 4.2, 4.4), targets, strict=True)
            for multiple in (1, 2)
        ]
    )
    found = list(length_sections(runs, lengths, FACTORS, None, "Explained."))
    return [section.heading for section in found], found[0].text


@pytest.mark.parametrize("study", ["disjoint, text x", "fixed_targets, targets 32, text room"])
def test_arms_are_compared_where_all_scored_the_same_targets(study: str) -> None:
    found, text = headings(study, ["5d41"] * 4)
    assert found == ["Beyond the training context", "Does it hold?", "Arms at each length"]
    assert "The targets are the same for all runs." in text


@pytest.mark.parametrize("targets", [["5d41", "5d41", "5d41", "98f1"], [""] * 4, [float("nan")] * 4])
def test_arms_are_not_compared_where_targets_differ_or_are_not_known(targets: list[object]) -> None:
    found, text = headings("fixed_targets, targets 32, room 128, text x", targets)
    assert found == ["Beyond the training context", "Does it hold?"]
    assert "Targets may differ between runs." in text
