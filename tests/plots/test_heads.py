"""The picture of attention heads: its axes, its crosses and what it predicts."""

from gptstar.plots.heads import LEAST_FELT, Columns, HeadMap, TailLine, draw_head_maps, draw_heads
from gptstar.plots.lines import Point


def drawn(values: list[float], maps: list[HeadMap], **ends: float):
    tails = [TailLine("slope 1/2", [Point(2**n, value) for n, value in enumerate(values)], **ends)]
    return draw_heads(maps, Columns(("1/2", "1/4"), "slope"), tails, 4, title="m", longest=16)


def test_shares_that_vanish_are_on_a_logarithm_with_what_is_predicted() -> None:
    figure = drawn([1.0, 0.1, 1e-9, 0.0], [], unfelt=6.0, vanishes=12.0)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    ring, cross = (next(line for line in axes.lines if line.get_marker() == marker) for marker in ("o", "X"))
    rings = [line for line in axes.lines if list(line.get_ydata()) == [LEAST_FELT]]
    assert [list(line.get_xdata()) for line in rings] == [[6.0]]
    assert list(cross.get_xdata()) == [12.0]
    assert list(ring.get_xdata()) == [1, 2, 4]  # the zero is not drawn
    assert "cross: to be zero beyond" in axes.get_xlabel()


def test_shares_that_stay_are_on_a_linear_axis() -> None:
    (axes,) = drawn([1.0, 0.5, 0.2], [], unfelt=6.0, vanishes=12.0).axes
    assert axes.get_yscale() == "linear"
    assert "cross" not in axes.get_xlabel()


def test_blind_heads_are_crossed_and_predicted_ones_underlined() -> None:
    maps = [HeadMap("8 tokens", [[0.0, 0.2], [0.0, 0.004]], [[True, False], [True, False]], [True, False])]
    heads, *_ = drawn([1.0, 0.5], maps).axes
    crosses = [line for line in heads.lines if line.get_marker() == "x"]
    assert [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in crosses] == [(0.5, 0.5), (0.5, 1.5)]
    assert sorted(text.get_text() for text in heads.texts) == ["0.4", "20"]
    (bar,) = [line for line in heads.lines if line.get_linewidth() == 5]
    assert 0 < min(bar.get_xdata()) < max(bar.get_xdata()) < 1


def test_maps_of_many_models_stand_in_rows() -> None:
    maps = [HeadMap(f"m{n}", [[0.1 * n] * 4] * 2, [[False] * 4] * 2) for n in range(5)]
    figure = draw_head_maps(maps)
    places = [axes.get_position() for axes in figure.axes[:5]]
    assert [round(place.y0, 3) == round(places[0].y0, 3) for place in places] == [True] * 3 + [False] * 2
    assert [axes.get_title() for axes in figure.axes[:5]] == [f"m{n}" for n in range(5)]
    assert figure.get_supxlabel() == "head"
