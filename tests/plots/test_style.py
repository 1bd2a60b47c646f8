"""The look of all plots: colours that everybody can tell apart on either paper, two forms, text that can be read."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from gptstar.plots.lines import Point
from gptstar.plots.loss import LossCurve, draw_losses
from gptstar.plots.style import COLOURS, DARK_INK, DARK_PAPER, GREY, INK, PAPER, Figure, save, to_svg

VISION = {  # Machado, Oliveira and Fernandes (2009), severity 1: on linear RGB
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_colour_is_legible_on_light_and_dark_paper() -> None:
    assert contrast(INK, PAPER) > 12
    assert contrast(DARK_INK, DARK_PAPER) > 12
    for colour in (*COLOURS, GREY):
        if colour != INK:  # which changes with the paper
            assert contrast(colour, PAPER) >= 3, colour
            assert contrast(colour, DARK_PAPER) >= 3, colour


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("ink", [INK, DARK_INK])
def test_colour_blind_readers_can_tell_the_colours_apart(vision: str, ink: str) -> None:
    seen = [lab(np.array(VISION[vision]) @ linear(ink if each == INK else each)) for each in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 10


@pytest.fixture
def figure() -> Figure:
    drawn = draw_losses([LossCurve("a_$x$_b", validation=[Point(1e3, 4.0), Point(2e3, 3.0)])])
    assert drawn is not None
    return drawn


def test_a_png_has_its_own_paper_and_1600_pixels(figure: Figure, tmp_path: Path) -> None:
    save(figure, tmp_path / "plot.png")
    pixels = imread(tmp_path / "plot.png")
    assert pixels.shape[1] == 1600
    assert (pixels[0, 0] * 255).round().tolist() == [*(int(PAPER[place : place + 2], 16) for place in (1, 3, 5)), 255]


def test_text_is_ten_pixels_high_at_600(figure: Figure) -> None:
    pixels_per_point = 600 / (72 * figure.get_figwidth())
    (axes,) = figure.axes
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    assert min(label.get_fontsize() for label in labels) * pixels_per_point >= 10


def test_an_svg_follows_the_page(figure: Figure) -> None:
    svg = to_svg(figure)
    assert svg.startswith("<svg")
    _, style, drawn = svg.replace("</style>", "<style>").split("<style>", 2)
    assert f"--ink:{INK}" in style
    assert f"prefers-color-scheme:dark){{:root{{--ink:{DARK_INK};--paper:{DARK_PAPER}" in style
    assert "var(--ink)" in drawn
    assert "var(--paper)" in drawn
    assert INK not in drawn
    assert "#000000" not in drawn
