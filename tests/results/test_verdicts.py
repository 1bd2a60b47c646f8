"""Verdicts on arms: over seeds and units of text, of real runs, and of losses whose answer is known."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gptstar import results
from gptstar.cli import main
from gptstar.evaluation.statistics.crossed import crossed_ratio
from gptstar.evaluation.statistics.paired import holm
from gptstar.results.arm_verdicts import VERDICT_FIGURES
from support.runs import SMALL, run_here

READING = ("multiples=[1,2,4]", "protocol=fixed_targets", "max_tokens=512", "controls=true", "rotary_scaling=[none]")


@pytest.fixture(scope="module")
def folder(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of positions with two seeds each, and a run that tuned one of them."""
    folder = tmp_path_factory.mktemp("verdicts")
    few = ("total_steps=4", "schedule.warmup_steps=1", "validate_every=4", *(f"reading.{each}" for each in READING))
    words = [*SMALL, "data=local", f"data.files={text}", *few]
    for positions in ("alibi", "none"):
        for seed in (0, 1):
            where = folder / f"{positions}-{seed}"
            run_here([*words, f"model.positions={positions}", f"seed={seed}", f"output={where}"])
    tuned = ["seed=7", "optimizer.learning_rate=0.01", "tags=[tuning]", f"output={folder / 'tuning'}"]
    run_here([*words, *tuned])
    return folder


def study_of(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "length/results.json").read_text())
    return tree


def sums(tree: dict[str, Any], context: str, length: int) -> list[float]:
    (curve,) = (each for each in tree["curves"] if each["context"] == context)
    (point,) = (each for each in curve["lengths"] if each["context_length"] == length)
    return point["sums"]


def test_a_line_for_each_arm_and_length_over_seeds_and_units(folder: Path) -> None:
    frame = results.verdicts(folder)
    assert list(frame.columns) == ["model.positions", *VERDICT_FIGURES]
    assert list(frame["model.positions"]) == ["alibi", "alibi", "none", "none"]
    assert list(frame["multiple"]) == [2, 4, 2, 4]
    assert set(frame["n_seeds"]) == {2}  # the run that tuned is left out
    first = frame.iloc[0]
    trees = [study_of(folder / f"alibi-{seed}") for seed in (0, 1)]
    counts = np.array(trees[0]["curves"][0]["counts"])
    assert first["n_units"] == len(counts) > 5
    places = {
        "full": ("full", 64),
        "truncated": ("truncated", 64),
        "cut": ("cut", 64),
        "cut_with_sinks": ("cut_with_sinks", 64),
    }
    tables = {key: np.array([sums(tree, *place) for tree in trees]) for key, place in places.items()}
    for key, table in tables.items():
        assert first[key] == pytest.approx(table.sum() / (2 * counts.sum()))
    best = min(("truncated", "cut", "cut_with_sinks"), key=lambda key: tables[key].sum())
    assert first["best"] == best
    found, change = (crossed_ratio(tables[key], tables["full"], counts) for key in (best, "truncated"))
    assert (first["difference"], first["low"], first["high"], first["p"]) == pytest.approx(
        (found.value, found.low, found.high, found.p)
    )
    assert (first["change"], first["change_low"]) == pytest.approx((change.value, change.low))
    assert list(frame["p_holm"]) == pytest.approx(holm(list(frame["p"])))
    assert set(frame["verdict"]) <= {"ignores", "can't tell", "breaks"}  # recall was not measured
    assert frame["recall"].isna().all()


def altered(folder: Path, tmp_path: Path, gain: Callable[[np.random.Generator], np.ndarray | float]) -> Path:
    """The runs of one arm, whose losses at 64 tokens with the full context are lower by something."""
    for seed in (0, 1):
        shutil.copytree(folder / f"alibi-{seed}", tmp_path / f"alibi-{seed}")
        tree, random = study_of(folder / f"alibi-{seed}"), np.random.default_rng(seed)
        for curve in tree["curves"]:
            counts = np.array(curve["counts"])
            for point in curve["lengths"]:
                lowered = curve["context"] == "full" and point["context_length"] == 64
                base = np.array(sums(tree, "full", 32))
                point["sums"] = list(base - counts * (gain(random) if lowered else 0.0))
        (tmp_path / f"alibi-{seed}/length/results.json").write_text(json.dumps(tree))
    return tmp_path


def recalled(accuracy: float) -> pd.DataFrame:
    """Recall of both seeds at 2 × the training context: all right nearby, and so much far away."""
    lines = [
        {"run": f"alibi-{seed}", "test": "pairs", "multiple": 2.0, "depth": depth, "chance": 0.25, "items": 100}
        | {"accuracy": 1.0 if depth >= 0.5 else accuracy + 0.01 * seed}
        for seed in (0, 1)
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    whole = [line | {"depth": float("nan"), "accuracy": 0.9} for line in lines[::5]]
    return pd.DataFrame(lines + whole)


def test_use_takes_recall_beyond_the_training_context(folder: Path, tmp_path: Path) -> None:
    changed = altered(folder, tmp_path, lambda random: 0.05 + random.normal(0, 0.001))
    for recall, verdict, share in (
        (recalled(0.8), "uses", 0.805),
        (recalled(0.24), "can't tell", 0.245),
        (None, "can't tell", None),
    ):
        first = results.verdicts(changed, recall=recall).iloc[0]
        assert first["difference"] == pytest.approx(-0.05, abs=0.005)
        assert first["verdict"] == verdict, first["reason"]
        assert pd.isna(first["recall"]) if share is None else first["recall"] == pytest.approx(share)
    assert "run evaluation=recall" in first["reason"]


def test_recall_of_seeds_that_agree_by_chance_is_not_above_it(folder: Path, tmp_path: Path) -> None:
    """0.32 of 100 texts may be a guess, 0.25, however many seeds and depths read these texts."""
    changed = altered(folder, tmp_path, lambda random: 0.05 + random.normal(0, 0.001))
    recall = recalled(0.32)
    recall.loc[recall["depth"] < 0.5, "accuracy"] = 0.32
    for seeds in (("alibi-0", "alibi-1"), ("alibi-0",)):
        first = results.verdicts(*(changed / each for each in seeds), recall=recall).iloc[0]
        assert first["recall"] == pytest.approx(0.32)
        assert first["verdict"] == "can't tell"


@pytest.mark.parametrize("is_older", [False, True])
def test_a_model_without_positions_there_is_undefined(is_older: bool, folder: Path, tmp_path: Path) -> None:
    changed = altered(folder, tmp_path, lambda _: 0.0)
    for seed in (0, 1):
        file = changed / f"alibi-{seed}/length/results.json"
        tree = json.loads(file.read_text())
        tree["curves"] = [each for each in tree["curves"] if not (is_older and each["context"] == "truncated")]
        for curve in (each for each in tree["curves"] if each["context"] != "truncated"):
            for point in curve["lengths"]:
                if point["context_length"] > 64:
                    point |= dict.fromkeys(("loss", "perplexity", "bits_per_byte", "change"), None) | {"sums": []}
        file.write_text(json.dumps(tree))
    frame = results.verdicts(changed)
    assert list(frame["verdict"]) == ["ignores", "undefined"]
    assert frame.loc[1, ["full", "cut", "difference", "low", "change"]].isna().all()
    assert frame.loc[1, ["truncated", "n_seeds"]].notna().all()
    main(["report", str(changed)])
    assert "| undefined |" in (changed / "report/report.md").read_text()
    assert 128 not in set(results.lengths(changed)["context_length"])


def test_a_reading_of_an_earlier_version_takes_the_training_context_for_the_truncated_text(
    folder: Path, tmp_path: Path
) -> None:
    changed = altered(folder, tmp_path, lambda _: 0.0)
    for seed in (0, 1):
        file = changed / f"alibi-{seed}/length/results.json"
        tree = json.loads(file.read_text())
        tree["curves"] = [each for each in tree["curves"] if each["context"] != "truncated"]
        file.write_text(json.dumps(tree))
    first = results.verdicts(changed).iloc[0]
    tables = [sums(study_of(changed / f"alibi-{seed}"), "full", 32) for seed in (0, 1)]
    counts = study_of(changed / "alibi-0")["curves"][0]["counts"]
    assert first["truncated"] == pytest.approx(np.sum(tables) / (2 * sum(counts)))
    assert first["largest_unit"] == max(counts) / sum(counts)


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "ignores"), (-0.05, "breaks")])
def test_losses_that_are_alike_or_higher(gain: float, verdict: str, folder: Path, tmp_path: Path) -> None:
    changed = altered(folder, tmp_path, lambda random: gain + random.normal(0, 0.0005))
    assert results.verdicts(changed).iloc[0]["verdict"] == verdict
    assert results.verdicts(changed, delta=0.06).iloc[0]["verdict"] == "ignores"


def test_one_seed_and_controls_that_were_not_read(folder: Path, tmp_path: Path) -> None:
    one = results.verdicts(folder / "alibi-0")
    assert list(one["n_seeds"]) == [1, 1]
    assert one["low"].notna().all()
    changed = altered(folder, tmp_path, lambda _: 0.0)
    for seed in (0, 1):
        file = changed / f"alibi-{seed}/length/results.json"
        tree = json.loads(file.read_text())
        file.write_text(json.dumps(tree | {"curves": [each for each in tree["curves"] if each["context"] == "full"]}))
    lacking = results.verdicts(changed)
    assert set(lacking["reason"]) == {"not every control was read"}
    assert lacking["difference"].isna().all()
    assert lacking["change"].notna().all()


def test_nothing_beyond_a_training_context_is_a_warning(folder: Path, tmp_path: Path) -> None:
    with pytest.warns(results.MissingResultsWarning, match=r"reading\.controls=true"):
        frame = results.verdicts(tmp_path)
    assert list(frame.columns) == list(VERDICT_FIGURES)


def test_the_report_has_a_section_and_plain_curves_are_not_mixed_with_controls(folder: Path) -> None:
    main(["report", str(folder)])
    report = (folder / "report/report.md").read_text()
    assert "Does it use what is far away?" in report
    assert "| ignores |" in report
    frame = results.lengths(folder)
    assert set(frame["context"]) == {"full"}
    assert len(frame) == 15
