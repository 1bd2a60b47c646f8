"""Ratios of speeds only from runs that are long enough."""

import pandas as pd
import pytest

from gptstar.results.speeds import deviation_text, n_at_a_time, speed_section, took_turns

FACTORS = ["model.residual", "seed"]


def runs(seconds: float, at_once: int = 1) -> pd.DataFrame:
    """Runs that began one after another, or so many at a time."""
    lines = [
        {"run": f"{residual}-{seed}", "state": "finished", "model.residual": residual, "seed": seed}
        | {"tokens_per_second": speed, "hours": seconds / 3600, "jobs_at_once": 1}
        for residual, speed in (("parallel", 2000.0), ("sequential", 1000.0))
        for seed in (0, 1)
    ]
    turns = [pd.Timedelta(seconds=(number // at_once) * seconds) for number in range(len(lines))]
    began = [pd.Timestamp("2026-11-01T00:00:00.5Z") + turn for turn in turns]
    at = [each + pd.Timedelta(seconds=seconds) for each in began]
    return pd.DataFrame(lines).assign(began=[each.floor("s") for each in began], at=at)


def curves(n_speeds: int) -> pd.DataFrame:
    return pd.DataFrame(
        [(run, step, "tokens_per_second", 1.0) for run in runs(1)["run"] for step in range(n_speeds)],
        columns=["run", "step", "metric", "value"],
    )


@pytest.mark.parametrize(
    ("seconds", "n_speeds", "said"),
    [
        (3.2, 29, "the shortest run trained for 3 s and a run recorded 29 speeds"),
        (600, 4, "the shortest run trained for 10 min and a run recorded 4 speeds"),
        (59, 0, "the shortest run trained for 59 s and a run recorded 0 speeds"),
    ],
)
def test_short_runs_have_no_speed_ratio_and_that_is_said(seconds: float, n_speeds: int, said: str) -> None:
    section = speed_section(runs(seconds), curves(n_speeds), FACTORS, None)
    assert section is not None
    assert section.text == f"No ratio: {said}. A ratio takes 60 s and 5 speeds of every run."
    assert section.table is None
    assert section.picture is None


@pytest.mark.parametrize(
    ("at_once", "how"),
    [(1, "No two runs overlapped in time, and arms"), (2, "Up to 2 runs overlapped in time, and arms")],
)
def test_a_ratio_says_whether_runs_overlapped(at_once: int, how: str) -> None:
    section = speed_section(runs(60, at_once), curves(5), FACTORS, None)
    assert section is not None
    assert how in section.text
    assert section.table is not None
    assert list(section.table["ratio"]) == ["× 0.500"]
    assert section.picture is not None
    assert n_at_a_time(runs(60, at_once)) == at_once


def test_there_is_no_section_without_two_arms() -> None:
    assert speed_section(runs(60)[:2], curves(5), ["seed"], None) is None


def test_one_disturbed_run_is_named_and_does_not_move_the_median() -> None:
    calm = runs(60)
    third = calm.assign(run=calm["run"] + "x", seed=calm["seed"] + 2)
    disturbed = pd.concat([calm, third[third["seed"] == 2]], ignore_index=True)
    disturbed.loc[disturbed["run"] == "sequential-0", "tokens_per_second"] = 100.0
    text = deviation_text(disturbed, FACTORS)
    assert text == (
        "1 of 6 runs deviates by more than half from the median speed of the arm: sequential-0 (100 tokens per second; "
        "median 1,000)."
    )
    assert deviation_text(calm, FACTORS) == ""
    long = pd.concat([curves(5), curves(5).assign(run=lambda frame: frame["run"].str.replace("-0", "-0x"))])
    section = speed_section(disturbed, long, FACTORS, None)
    assert section is not None
    assert section.table is not None
    assert list(section.table["ratio"]) == ["× 0.500"]
    assert text in section.text


def test_arms_took_turns_if_each_waited_for_all_others() -> None:
    one_after_another = runs(60)
    assert not took_turns(one_after_another, FACTORS)
    began = one_after_another["began"]
    assert took_turns(one_after_another.assign(began=[began[0], began[2], began[1], began[3]]), FACTORS)
    assert not took_turns(one_after_another, ["seed"])
