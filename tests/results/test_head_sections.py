"""What a report says of attention heads: counts over seeds, shares with intervals, a map for each arm."""

import pandas as pd
import pytest

from gptstar.results.attention_heads import HEAD_FIGURES
from gptstar.results.head_sections import findings_on_heads, head_sections, heads_by_arm

N_LAYERS, N_HEADS = 2, 3


def studied(blind: dict[tuple[str, int], int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs by kind and seed, and heads at 1 and 4 times the training context, of which the first few are blind."""
    arms = list(blind)
    runs = pd.DataFrame(arms, columns=["model.positions", "seed"])
    runs = runs.assign(run=[f"{kind}-{seed}" for kind, seed in arms], began=range(len(arms)), state="finished")
    lines = []
    for kind, seed in arms:
        for multiple in (1, 4):
            for number in range(N_LAYERS * N_HEADS):
                is_blind, is_far = number < blind[kind, seed], multiple > 1
                share = (0.0 if is_blind else 0.1 * (seed + 1)) if is_far else float("nan")
                line = dict.fromkeys(HEAD_FIGURES, float("nan")) | {"run": f"{kind}-{seed}", "positions": kind}
                line |= {"trained_at": 64, "context_length": 64 * multiple, "multiple": float(multiple)}
                line |= {"layer": 1 + number // N_HEADS, "head": 1 + number % N_HEADS, "beyond": share, "first": 0.5}
                line |= {"is_blind": is_blind if is_far else None, "misses_first": is_far and is_blind}
                predicted = number % N_HEADS == 0 if kind == "alibi" else None
                line |= {"predicted_blind": predicted if is_far else None, "predicted_to_miss_first": predicted}
                lines.append(line)
    return runs, pd.DataFrame(lines)


FACTORS = ["model.positions", "seed"]


def test_heads_are_counted_by_arm_and_length() -> None:
    runs, heads = studied({("alibi", 0): 1, ("alibi", 1): 2, ("rotary", 0): 0, ("rotary", 1): 0})
    (section,) = head_sections(runs, heads, FACTORS)
    table = section.table.set_index("model.positions")
    assert list(table["context"]) == ["4 ×"] * 2  # nothing lies beyond the training context at 1 ×
    alibi, rotary = table.loc["alibi"], table.loc["rotary"]
    assert (alibi["blind"], alibi["predicted blind"], alibi["heads"]) == ("1 to 2", "2", "6")
    assert (rotary["blind"], rotary["predicted blind"], rotary["predicted unseen"]) == ("0", "", "")
    assert rotary["weight beyond training"] == "15.0 % [0, 78.5]"  # 0.15 ± 12.7 × 0.05, cut at 0
    assert rotary["weight on the first token"] == "50.0 % [50.0, 50.0]"


def test_each_arm_has_a_map_in_which_heads_blind_in_every_seed_are_crossed() -> None:
    runs, heads = studied({("alibi", 0): 1, ("alibi", 1): 2, ("rotary", 0): 0})
    (section,) = head_sections(runs, heads, FACTORS)
    alibi, rotary, *_ = section.picture.axes
    assert (alibi.get_title(), rotary.get_title()) == ("alibi, 4 ×", "rotary, 4 ×")
    crosses = [(line.get_xdata()[0], line.get_ydata()[0]) for line in alibi.lines if line.get_marker() == "x"]
    assert crosses == [(0.5, 0.5)]
    bars = [axes for axes in (alibi, rotary) for line in axes.lines if line.get_linewidth() == 5]
    assert bars == [alibi]
    assert [text.get_text() for text in rotary.texts] == ["10"] * 6


def test_arms_of_other_shapes_have_a_table_only() -> None:
    runs, heads = studied({("alibi", 0): 1, ("rotary", 0): 0})
    heads = heads[(heads["positions"] == "alibi") | (heads["layer"] == 1)]
    (section,) = head_sections(runs, heads, FACTORS)
    assert section.picture is None
    assert list(section.table["heads"]) == ["6", "3"]


def test_findings_name_what_was_measured_and_predicted() -> None:
    runs, heads = studied({("alibi", 0): 1, ("rotary", 0): 0})
    rows, keys = heads_by_arm(runs, heads, FACTORS)
    assert list(findings_on_heads(rows, keys)) == [
        "Read at 4 ×, 1 of 6 heads of alibi give tokens beyond the training context no weight (predicted: 2).",
        "Read at 4 ×, 0 of 6 heads of rotary give tokens beyond the training context no weight.",
    ]


def test_a_later_study_of_a_run_counts_alone() -> None:
    runs, heads = studied({("alibi", 0): 1})
    later = studied({("alibi", 0): 3})[1]
    rows, _ = heads_by_arm(runs, pd.concat([heads, later]), ["seed"])
    assert len(rows) == N_LAYERS * N_HEADS
    assert rows["is_blind"].sum() == 3
    rows, keys = heads_by_arm(pd.DataFrame(), heads, [])
    assert keys == ["positions"]
    assert next(findings_on_heads(rows, keys)).startswith("Read at 4 ×, 1 of 6 heads of alibi")


@pytest.mark.parametrize("factors", [[], FACTORS])
def test_without_a_study_there_is_no_section(factors: list[str]) -> None:
    runs, heads = studied({("alibi", 0): 1})
    assert not list(head_sections(runs, heads.iloc[:0], factors))
