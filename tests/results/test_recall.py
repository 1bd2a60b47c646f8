"""Recall as frames: what each line says, which seeds learned, how far those recall; and the section of a report."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from gptstar import results
from gptstar.evaluation.statistics.intervals import accuracy_interval
from gptstar.results.recall_arms import RATE_FIGURES, rates
from gptstar.results.recall_frame import RECALL_FIGURES
from gptstar.results.recall_sections import findings_on_recall, recall_sections
from support.recall import asked, guessed, looked_up, within, write_recall


def checkpoint(name: str, positions: object) -> dict[str, object]:
    return {
        "name": f"{name}/best",
        "path": f"/nowhere/{name}/best.ckpt",
        "sha256": name,
        "model": {"positions": positions},
    }


def test_a_line_is_a_length_a_depth_or_a_load(tmp_path: Path) -> None:
    curve = asked(within(60), checkpoint("a", {"kind": "p_rope", "share": 0.5}))
    write_recall(tmp_path / "mine", curve)
    frame = results.recall(tmp_path)
    assert list(frame.columns) == list(RECALL_FIGURES)
    assert (set(frame["run"]), set(frame["positions"]), set(frame["checkpoint"])) == ({"mine"}, {"p_rope"}, {"a/best"})
    assert frame["learned"].all()
    assert (frame["multiple"] == frame["context_length"] / 53).all()
    whole = frame[frame["depth"].isna() & (frame["test"] == "pairs")]
    assert list(whole["context_length"]) == [53, 106, 212]
    assert list(whole["items"]) == [97 * 5] * 3
    assert list(whole["accuracy"]) == [cell.accuracy.value for cell in curve.lengths]
    assert list(whole["low"]) == [cell.accuracy.low for cell in curve.lengths]
    assert whole["accuracy"].iloc[0] == 1 > whole["accuracy"].iloc[2] > 0.25
    assert set(whole["chance"]) == {0.25}
    deep = frame[frame["context_length"].eq(212) & frame["depth"].notna()]
    assert list(deep["depth"]) == [0, 0.25, 0.5, 0.75, 1]
    assert deep["accuracy"].iloc[4] == 1  # it is next to the query
    loads = frame[frame["test"] == "loads"]
    assert list(loads["pairs"]) == [4, 8, 16, 32]
    assert list(loads["chance"]) == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_what_is_undefined_has_no_line_and_a_later_study_counts(tmp_path: Path) -> None:
    first, second = (asked(answer, checkpoint("a", "learned")) for answer in (guessed, looked_up))
    write_recall(tmp_path / "x/recall", first)
    assert not results.recall(tmp_path)["learned"].any()
    write_recall(tmp_path / "x/recall", second)
    assert results.recall(tmp_path)["learned"].all()
    undefined = [replace(cell, accuracy=None) if cell.context_length == 212 else cell for cell in second.lengths]
    write_recall(tmp_path / "x/recall", replace(second, lengths=tuple(undefined)))
    frame = results.recall(tmp_path)
    assert set(frame[frame["depth"].isna() & (frame["test"] == "pairs")]["context_length"]) == {53, 106}
    file = tmp_path / "x/recall/results.json"
    file.write_text(file.read_text().replace('"value": 1.0,', '"value": 1.5,', 1))
    with (
        pytest.warns(results.MissingResultsWarning),
        pytest.warns(results.DamagedWarning, match=r"1\.5 right at 53 of 53 tokens is not a share"),
    ):
        assert results.recall(tmp_path).empty


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    for function in (results.recall, results.recall_rates):
        with pytest.warns(
            results.MissingResultsWarning, match="there is no study of recall in .*: run `python evaluate"
        ):
            assert function(tmp_path).empty


def test_kinds_are_told_apart_where_no_run_is_given(tmp_path: Path) -> None:
    write_recall(tmp_path / "a", asked(looked_up, checkpoint("a", "alibi")))
    write_recall(tmp_path / "b", asked(within(60), checkpoint("b", "alibi")))
    write_recall(tmp_path / "c", asked(guessed, checkpoint("c", "rotary")))
    found = results.recall_rates(tmp_path)
    assert list(found.columns) == ["positions", *RATE_FIGURES]
    alibi, rotary = (found[found["positions"] == kind] for kind in ("alibi", "rotary"))
    assert list(alibi["multiple"]) == [1, 2, 4]
    assert set(zip(found["seeds"], found["learned"], strict=True)) == {(2, 2), (1, 0)}
    assert len(rotary) == 1
    assert rotary[["multiple", "accuracy", "low", "high"]].isna().all(axis=None)


def sweep(learned: dict[tuple[str, int], list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs by kind and seed, and the accuracy of each at 1, 2, 4 times its training context."""
    arms = list(learned)
    runs = pd.DataFrame(arms, columns=["model.positions", "seed"])
    runs = runs.assign(run=[f"{kind}-{seed}" for kind, seed in arms], began=range(len(arms)), state="finished")
    lines = [
        {"run": f"{kind}-{seed}", "checkpoint": "best", "positions": kind, "test": "pairs", "trained_at": 64}
        | {"context_length": 64 * 2**n, "multiple": 2.0**n, "depth": math.nan, "pairs": 4, "accuracy": share}
        | {"low": share - 0.1, "high": share + 0.1, "chance": 0.25, "items": 500, "learned": shares[0] >= 0.95}
        for (kind, seed), shares in learned.items()
        for n, share in enumerate(shares)
    ]
    return runs, pd.DataFrame(lines, columns=list(RECALL_FIGURES))


SWEEP = {
    ("alibi", 0): [1.0, 0.8, 0.6],
    ("alibi", 1): [0.96, 0.9, 0.7],
    ("alibi", 2): [0.3, 0.3, 0.3],
    ("rotary", 0): [0.94, 0.94, 0.94],
    ("rotary", 1): [0.3, 0.3, 0.3],
    ("none", 0): [0.99, 0.5, 0.25],
}


def test_rates_are_those_of_the_seeds_that_learned() -> None:
    runs, recall = sweep(SWEEP)
    found = rates(runs, recall, ["model.positions", "seed"]).set_index("model.positions")
    assert list(found.loc["alibi", "accuracy"]) == pytest.approx([0.98, 0.85, 0.65])
    assert (found.loc["alibi"]["seeds"].iloc[0], found.loc["alibi"]["learned"].iloc[0]) == (3, 2)
    half = 12.706205 * 0.05  # Student's t with one degree of freedom; the two seeds are 0.1 apart
    assert found.loc["alibi", "low"].iloc[2] == pytest.approx(0.65 - half)
    assert found.loc["alibi", "high"].iloc[2] == 1  # cut
    assert list(found.loc["none", "low"]) == pytest.approx([0.89, 0.4, 0.15])  # of one seed, over texts
    assert found.loc["rotary", "learned"] == 0
    assert math.isnan(found.loc["rotary", "accuracy"])


def test_a_report_says_who_did_not_learn() -> None:
    runs, recall = sweep(SWEEP)
    (section,) = recall_sections(runs, recall, ["model.positions", "seed"])
    assert section.heading == "Recall among 4 pairs"
    assert "A guess among the 4 values of a text is right in 25.0 %." in section.text
    assert list(section.table.columns) == ["model.positions", "seeds", "learned", "1 ×", "2 ×", "4 ×"]
    cells = section.table.set_index("model.positions")
    assert list(cells["learned"]) == ["2 of 3", "did not learn", "1 of 1"]
    assert list(cells.loc["rotary", ["1 ×", "2 ×", "4 ×"]]) == ["", "", ""]
    assert cells.loc["none", "2 ×"] == "50.0 % [40.0, 60.0]"
    (axes,) = section.picture.axes
    assert "did not learn: rotary" in axes.get_xlabel()
    said = list(findings_on_recall(rates(runs, recall, ["model.positions", "seed"])))
    assert said[0].startswith(
        "alibi learned recall (95 % right at the training context) in 2 of 3 seeds, which have 65.0 % ["
    )
    assert said[1] == "rotary did not learn recall (95 % right at the training context) in any of 2 seeds."
    assert said[2].endswith("which have 25.0 % [15.0, 35.0] right at 4 ×; a guess has 25.0 %.")


def test_runs_of_one_seed_that_differ_in_nothing_count_as_one() -> None:
    runs, recall = sweep({("alibi", 0): [1.0, 0.8, 0.6], ("alibi", 1): [0.96, 0.9, 0.7]})
    again = [runs.iloc[:1].assign(run="again"), recall.iloc[:3].assign(run="again", accuracy=[1.0, 0.6, 0.6])]
    both = (pd.concat(each, ignore_index=True) for each in ([runs, again[0]], [recall, again[1]]))
    found = rates(*both, ["seed"])
    assert set(found["positions"]) == {"alibi"}
    assert set(found["seeds"]) == {2}
    assert list(found["accuracy"]) == pytest.approx([0.98, (0.7 + 0.9) / 2, 0.65])


def test_all_right_has_the_interval_of_its_texts() -> None:
    cell = asked(looked_up).lengths[0]
    expected = accuracy_interval([1] * 485, [n for _ in range(5) for n in range(97)])
    assert (cell.accuracy.low, cell.accuracy.high) == (expected.low, 1.0)
