"""The picture of recall against length: a line for each arm that learned, a guess, and who did not learn."""

from gptstar.plots.lines import Line, Point
from gptstar.plots.recall_curves import draw_recall_curves
from gptstar.plots.style import COLOURS


def test_lines_stand_over_multiples_and_those_that_failed_are_named() -> None:
    lines = [
        Line(name, [Point(1, 1.0, 0.9, 1.0), Point(2, 0.5), Point(16, 0.25, 0.2, 0.3)]) for name in ("alibi", "fox")
    ]
    figure = draw_recall_curves(lines, ["rotary", "none"], 0.25)
    (axes,) = figure.axes
    drawn = {container.get_label(): container.lines[0] for container in axes.containers}
    assert list(drawn) == ["alibi", "fox"]
    assert list(drawn["fox"].get_ydata()) == [1.0, 0.5, 0.25]
    assert [drawn[name].get_color() for name in drawn] == list(COLOURS[:2])
    assert list(drawn["alibi"].get_xdata()) < list(drawn["fox"].get_xdata())  # beside each other
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1×", "2×", "16×"]
    assert axes.get_ylim() == (0, 1.04)
    guess = next(each for each in axes.lines if list(each.get_ydata()) == [0.25, 0.25])
    assert guess.get_linestyle() == "--"
    assert "did not learn: rotary; none" in axes.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["alibi", "fox"]


def test_one_line_is_named_above() -> None:
    (axes,) = draw_recall_curves([Line("alibi", [Point(1, 1.0), Point(2, 0.5)])], [], 0.25).axes
    assert axes.get_title(loc="left") == "alibi"
    assert axes.get_xlabel() == "length of the text / training context"
