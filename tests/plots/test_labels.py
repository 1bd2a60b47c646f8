"""Labels: the digits that differ, short names, the scale that suits the values."""

import pytest
from matplotlib.figure import Figure

from gptstar.plots.labels import factor_axis, length_axis, level_texts, power_text, scale_for, short_names


@pytest.mark.parametrize(
    ("levels", "texts"),
    [
        ([0.0003, 0.001, 0.003], ["0.0003", "0.001", "0.003"]),
        ([0.001, 0.0010002], ["0.001", "0.0010002"]),
        ([1e-05, 3e-5], ["1e-5", "3e-5"]),
        ([0.0014, 0.002], ["0.0014", "0.002"]),
        ([512, 1024, 16384], ["512", "1,024", "16,384"]),
        (["alibi", "null", 0.5, True], ["alibi", "null", "0.5", "True"]),
    ],
)
def test_levels_show_the_digits_that_differ(levels: list[object], texts: list[str]) -> None:
    assert level_texts(levels) == texts


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["fast_small", "recipe-without_muon"], ["fast_small", "recipe-without_muon"]),
        (["runs/a/seed-0", "runs/a/seed-1"], ["0", "1"]),
        (["recipe-without_muon", "recipe-without_memory"], ["without_muon", "without_memory"]),
        (["alone/with-dashes"], ["alone/with-dashes"]),
        (["same", "same"], ["same", "same"]),
        (["reference-of-512-tokens-at-a-step", "x"], ["reference-o…ns-at-a-step", "x"]),
    ],
)
def test_names_lose_what_they_share(names: list[str], short: list[str]) -> None:
    assert short_names(names, 24) == short


def test_short_names_still_differ() -> None:
    names = [f"{'a' * 30}{letter}{'b' * 30}" for letter in "xyz"]
    assert len(set(short_names(names))) == 3


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.0003, 0.001, 0.003, 0.01], "log10"),
        ([1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3], "log10"),
        ([64, 128, 256], "log2"),
        ([1, 2], "log2"),
        ([0.1, 0.2, 0.3, 0.4], "linear"),
        ([0, 10, 100], "linear"),
        ([3, 7], "linear"),
        ([3, 30], "log10"),
    ],
)
def test_the_scale_suits_the_values(values: list[float], scale: str) -> None:
    assert scale_for(values) == scale
    axes = Figure().subplots()
    factor_axis(axes, values)
    assert axes.get_xscale() == ("linear" if scale == "linear" else "log")
    assert list(axes.get_xticks()) == values


def test_lengths_are_in_thousands_where_whole_numbers_do_not_fit() -> None:
    axes = Figure().subplots()
    length_axis(axes, [512, 1024])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "1,024"]
    length_axis(axes, [128, 256, 512, 1024, 2048, 16384])
    assert [label.get_text() for label in axes.get_xticklabels()][-2:] == ["2,048", "16,384"]
    length_axis(axes, [128, 256, 512, 1024, 2048, 16384], 25)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["128", "256", "512", "1k", "2k", "16k"]


def test_powers_of_ten_are_written_so() -> None:
    assert [power_text(value) for value in (0.01, 1, 500, 20_000, 1e6, 2e13, 1e-7)] == [
        *("0.01", "1", "500", "20,000", "10⁶", "2×10¹³", "10⁻⁷"),
    ]
