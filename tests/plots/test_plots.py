"""The content of plots: labels, their order, scales and marks."""

import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from gptstar.plots.budgets import BudgetLine, draw_budgets
from gptstar.plots.effects import EffectPoint, draw_effects
from gptstar.plots.factor import FactorLine, draw_factor
from gptstar.plots.lengths import LengthLine, draw_lengths
from gptstar.plots.lines import Line, Point
from gptstar.plots.loss import LossCurve, draw_losses, draw_run, plot_loss
from gptstar.plots.positions import PositionLine, draw_positions
from gptstar.plots.score_curves import ScoreCurves, draw_score_curves
from gptstar.plots.scores import Score, ScorePanel, draw_scores
from gptstar.plots.speed import Speeds, draw_speeds
from gptstar.plots.style import BLUE, COLOURS, GREY, NOTE, Figure


def only(figure: Figure | None) -> Axes:
    assert figure is not None
    (axes,) = figure.axes
    return axes


def texts(labels: object) -> list[str]:
    return [label.get_text() for label in labels]


def legend_of(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [text for legend in figure.legends for text in texts(legend.get_texts())]


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    found = next(each for each in axes.lines if each.get_label() == label)
    return list(found.get_xdata()), list(found.get_ydata())


def falling(start: float, n: int = 20) -> list[Point]:
    return [
        Point(1000 * (step + 1), start / (step + 1), start / (step + 1) - 0.1, start / (step + 1)) for step in range(n)
    ]


def test_a_run_of_one_validation_shows_how_its_training_loss_fell(tmp_path: Path) -> None:
    rows = [{"step": step, "tokens": 512.0 * step, "train/loss": 6.0 - step / 10} for step in range(1, 31)]
    rows.append({"step": 30, "validation/loss": 3.25})
    axes = only(draw_run(rows, "mine", bigram=4.5))
    assert line(axes, "training")[0] == [512.0 * step for step in range(1, 31)]
    assert line(axes, "validation") == ([512.0 * 30], [3.25])
    assert texts(axes.get_legend().get_texts()) == ["training", "validation", "bigram model, 4.50"]
    assert "3.25" in texts(axes.texts)
    plot_loss(rows, tmp_path / "loss.png", "mine")
    assert (tmp_path / "loss.png").stat().st_size > 5000
    plot_loss([], tmp_path / "empty.png", "mine")


def test_arms_of_one_validation_show_their_training_loss() -> None:
    arms = [LossCurve(name, falling(start), [Point(20_000, start / 20)]) for name, start in (("a", 9.0), ("b", 8.0))]
    figure = draw_losses(arms, "learning_rate")
    axes = only(figure)
    assert [len(each.get_xdata()) for each in axes.lines] == [20, 1, 20, 1]
    assert legend_of(figure) == ["a", "b"]
    assert axes.get_xlabel() == "tokens"
    assert [axes.xaxis.get_major_formatter()(tokens) for tokens in (20_000, 26e9)] == ["20k", "26B"]
    assert axes.get_ylim()[1] < 9.0  # the first losses leave the plot
    assert axes.get_ylim()[0] < 8.0 / 20
    assert draw_losses([]) is None
    assert legend_of(draw_losses([LossCurve("a", falling(9.0)), LossCurve("b", falling(8.0))])) == ["a", "b"]


def test_every_band_of_the_validation_is_in_the_plot() -> None:
    validation = [Point(1000, 8.5, 8.0, 9.0), Point(20_000, 3.0, 2.0, 4.0)]
    axes = only(draw_losses([LossCurve("a", falling(40.0), validation)]))
    low, high = axes.get_ylim()
    assert low < 2.0
    assert 9.0 < high < 40.0
    assert axes.get_title(loc="left") == "The first training losses lie above the plot."
    assert only(draw_losses([LossCurve("a", validation=validation)])).get_title(loc="left") == ""


def test_of_many_arms_the_best_have_colours() -> None:
    arms = [
        LossCurve(f"arm {number}", validation=[Point(1, 9.0 - number), Point(2, 5.0 - 0.1 * number)])
        for number in range(9)
    ]
    figure = draw_losses(arms)
    assert legend_of(figure) == ["4 with higher loss", *(f"arm {number}" for number in range(4, 9))]
    assert sum(to_hex(each.get_color()) == GREY for each in only(figure).lines) == 4


def test_losses_that_are_not_finite_are_not_drawn() -> None:
    """The finite losses of a diverged run are drawn, but it is not the best."""
    good, diverged = falling(9.0), [Point(1000, 3.0), Point(2000, math.inf), Point(3000, math.nan)]
    figure = draw_losses([LossCurve("good", good), *(LossCurve(f"bad {n}", diverged) for n in range(6))])
    assert legend_of(figure) == ["2 with higher loss", "good", *(f"bad {n}" for n in range(4))]
    assert all(map(math.isfinite, only(figure).get_ylim()))
    assert only(draw_losses([LossCurve("worst", validation=[Point(1000, math.inf)])])) is not None
    rows = [{"step": 1, "tokens": 512.0, "train/loss": 6.0}, {"step": 1, "validation/loss": math.inf}]
    assert texts(only(draw_run(rows, "mine")).texts) == []


def rates(*losses: float, best: float, name: str = "all runs", edge: bool = False) -> FactorLine:
    places = (0.0003, 0.001, 0.003, 0.01)
    points = [Point(x, loss, loss - 0.1, loss + 0.2) for x, loss in zip(places, losses, strict=False)]
    return FactorLine(name, points, best, edge)


def shaded(axes: Axes) -> int:
    return sum(to_hex(each.get_facecolor()) == GREY for each in axes.patches)


def test_a_best_rate_inside_the_grid_is_marked() -> None:
    figure = draw_factor([rates(5.0, 4.5, 4.25, 4.75, best=0.003)], "learning rate", "validation loss")
    axes = only(figure)
    assert axes.get_xscale() == "log"
    assert texts(axes.get_xticklabels()) == ["0.0003", "0.001", "0.003", "0.01"]
    assert axes.get_xlabel() == "learning rate"
    assert [each.get_xdata()[0] for each in axes.lines if each.get_markersize() > 10] == [0.003]
    assert [text for text in texts(axes.texts) if text] == ["0.003: 4.250"]
    assert shaded(axes) == 0
    assert axes.get_title(loc="left") == "ring: lowest"


@pytest.mark.parametrize(
    ("losses", "best", "side"), [((5.0, 4.5, 4.3, 4.1), 0.01, 1), ((4.0, 4.5, 4.6, 4.7), 0.0003, -1)]
)
def test_a_best_rate_at_the_edge_points_beyond(losses: tuple[float, ...], best: float, side: int) -> None:
    axes = only(draw_factor([rates(*losses, best=best, edge=True)], "learning rate", "validation loss"))
    (arrow,) = [text for text in axes.texts if text.get_text() == ""]
    assert arrow.xy[0] == best
    assert math.copysign(1, arrow.get_position()[0]) == side
    assert shaded(axes) == 2
    assert "edge" in axes.get_title(loc="left")


def test_each_arm_has_its_line_and_its_best() -> None:
    arms = [rates(5.0, 4.5, 4.25, 4.75, best=0.003, name="alibi"), rates(5.5, 5.0, 4.9, best=0.003, name="rotary")]
    figure = draw_factor(arms, "learning rate", "validation loss")
    assert legend_of(figure) == ["alibi", "rotary"]
    assert len([each for each in only(figure).lines if each.get_markersize() > 10]) == 2
    assert draw_factor([FactorLine("one", [Point(1.0, 2.0)], 1.0)], "x", "y") is None


def lengths(name: str, trained_at: int, *losses: float, undefined: tuple[int, ...] = ()) -> LengthLine:
    points = [Point(trained_at * 2**power, loss, loss - 0.1, loss + 0.1) for power, loss in enumerate(losses)]
    changes = [
        Point(each.x, each.value - losses[0], each.value - losses[0] - 0.01, each.value - losses[0] + 0.01)
        for each in points[1:]
    ]
    return LengthLine(name, trained_at, points, changes, undefined)


def test_the_change_is_drawn_below_the_loss() -> None:
    figure = draw_lengths([lengths("mine", 64, 4.0, 3.98, 4.01)], "a title")
    assert figure is not None
    loss, change = figure.axes
    assert loss.get_xscale() == change.get_xscale() == "log"
    assert texts(change.get_xticklabels()) == ["64", "128", "256"]
    assert loss.get_ylabel() == "loss (nats per token)"
    assert change.get_ylabel() == "change since the\ntraining context\n(nats per token)"
    drawn = change.containers[0]
    assert list(drawn[0].get_ydata()) == pytest.approx([-0.02, 0.01])
    (bars,) = drawn[2]
    assert [sorted(segment[:, 1]) for segment in bars.get_segments()] == [
        pytest.approx([-0.03, -0.01]),
        pytest.approx([0.0, 0.02]),
    ]
    assert "training context (up to 64)" in texts(loss.texts)
    assert loss.get_ylim()[1] - loss.get_ylim()[0] >= 0.2  # noise is not to look like a slope
    assert loss.get_position().height > 1.3 * change.get_position().height
    assert draw_lengths([]) is None


def test_an_axis_of_losses_is_no_higher_than_the_losses_take() -> None:
    near = [Point(64 * 2**power, 3.88, 3.83, 3.93) for power in range(4)]
    figure = draw_lengths([LengthLine("mine", 64, near)], bars="bars: seeds")
    axes = only(figure)
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(0.2)
    assert low < 3.83 < 3.93 < high
    assert axes.get_xlabel() == "context read (tokens)"
    assert figure is not None
    assert figure.get_supxlabel() == "bars: seeds"
    assert [text.get_ha() for text in axes.texts[:4]] == ["left", "left", "left", "right"]


def test_what_bars_are_is_said_above_the_legend() -> None:
    lines = [lengths(name, 64, 4.0, 4.0) for name in ("alibi", "rotary")]
    figure = draw_lengths(lines, legend="positions", bars="bars: seeds")
    assert figure is not None
    assert figure.legends[0].get_title().get_text() == "bars: seeds\npositions"


def test_models_of_several_training_contexts_share_a_panel() -> None:
    figure = draw_lengths([lengths("trained at 64", 64, 4.0, 4.0), lengths("trained at 128", 128, 3.9, 3.9)])
    assert figure is not None
    assert len(figure.axes) == 2
    assert legend_of(figure) == ["trained at 64", "trained at 128"]
    dotted = [each.get_xdata()[0] for each in figure.axes[0].lines if each.get_linestyle() == ":"]
    assert {64, 128} <= set(dotted)


def test_arms_at_several_training_contexts_have_a_panel_for_each() -> None:
    lines = [
        lengths(name, length, loss, loss + 0.1)
        for length in (64, 128, 256)
        for name, loss in (("alibi", 4.0), ("rotary", 4.2))
    ]
    figure = draw_lengths(lines, legend="positions")
    assert figure is not None
    assert len(figure.axes) == 6
    assert legend_of(figure) == ["alibi", "rotary"]
    assert {text for axes in figure.axes for text in texts(axes.texts)} == {
        f"trained at {length}" for length in (64, 128, 256)
    }
    assert len({axes.get_ylim() for axes in figure.axes[::2]}) == 1


def test_a_model_that_fails_leaves_the_plot_and_an_undefined_one_has_crosses() -> None:
    figure = draw_lengths([lengths("alibi", 64, 4.0, 4.0), lengths("learned", 64, 4.1, 60.0, undefined=(256,))])
    assert figure is not None
    assert figure.axes[0].get_ylim()[1] < 8
    assert legend_of(figure) == ["alibi", "learned (×: undefined)"]
    (cross,) = [each for each in figure.axes[0].lines if each.get_marker() == "x" and len(each.get_xdata())]
    assert list(cross.get_xdata()) == [256]


def test_positions_mark_the_training_context() -> None:
    points = [Point(1, 7.0, 6.9, 7.1), Point(2.5, 6.0, 5.9, 6.1)]
    axes = only(draw_positions([PositionLine("mine", points, [1, 4], trained_at=2)], "a title"))
    assert texts(axes.get_xticklabels()) == ["1", "4"]
    assert [each.get_xdata()[0] for each in axes.lines if each.get_linestyle() == ":"] == [2]


def effect(factor: str, level: object, against: object, *, significant: bool = False) -> EffectPoint:
    return EffectPoint(factor, level, against, -0.5, -0.6, -0.4, significant)


def test_effects_are_labelled_by_what_differs() -> None:
    long = "recipe-without_muon-and-with-everything-else-as-it-was"
    points = [
        *(effect("optimizer.learning_rate", rate, 0.0003) for rate in (0.001, 0.003)),
        effect("experiment", long, "recipe-reference", significant=True),
    ]
    figure = draw_effects(points, "validation loss")
    axes = only(figure)
    assert texts(axes.get_yticklabels()) == ["0.001", "0.003", "recipe-with…se-as-it-was"]
    assert texts(axes.texts) == ["optimizer.learning_rate, against 0.0003:", "experiment, against recipe-reference:"]
    assert axes.get_position().width > 0.6  # of the figure's
    colours = [to_hex(each[0].get_color()) for each in axes.containers]
    assert colours == [NOTE, NOTE, COLOURS[0].lower()]
    assert list(axes.get_yticks()) == [3, 2, 0]
    assert figure is not None
    assert figure.get_supxlabel().startswith("change of validation loss\n95 % intervals")
    arms = [effect("experiment", f"recipe-{name}", "fast_small") for name in ("without_muon", "reference_betas")]
    assert texts(only(draw_effects(arms, "loss")).get_yticklabels()) == ["without_muon", "reference_betas"]
    assert draw_effects([], "validation loss") is None


def test_an_effect_of_one_seed_has_no_bar() -> None:
    axes = only(draw_effects([EffectPoint("seedless", 1, 0, 0.5, math.nan, math.nan, False)], "loss"))
    assert not axes.containers[0].has_xerr


def test_scores_that_are_far_apart_are_on_a_logarithmic_axis() -> None:
    published = [Score("GPT-127*", 28.6), Score("GPT-1B*", 9.8), Score("other", 20.0, is_same_metric=False)]
    panels = [
        ScorePanel("LAMBADA", "ppl", False, [Score("mine", 4e13, 1e13, 9e13)], published, is_ratio=True),
        ScorePanel("PIQA", "acc %", True, [Score("mine", 61.0, 58.0, 64.0)], [Score("GPT-127*", 63.0)], chance=50.0),
        ScorePanel("WikiText", "word ppl", False, [Score("mine", math.inf)], published[:2], is_ratio=True),
    ]
    figure = draw_scores(panels, "mine")
    assert figure is not None
    far, near, infinite, empty = figure.axes
    assert [axes.get_xscale() for axes in (far, near, infinite)] == ["log", "linear", "linear"]
    assert texts(far.get_yticklabels()) == ["mine", "GPT-127*", "GPT-1B*", "other"]
    assert far.yaxis_inverted()  # ours are on top
    assert [each.get_marker() for each in far.lines if each.get_label().startswith("_child")][-3:] == ["o", "o", "x"]
    assert far.get_xlabel() == "ppl   ← better"
    assert far.xaxis.get_major_formatter()(1e13, 0) == "10¹³"
    assert far.xaxis.get_major_formatter()(100, 0) == "10²"  # one notation on an axis
    assert " chance " in texts(near.texts)
    assert "∞" in texts(infinite.texts)
    assert not empty.axison
    assert ScorePanel("task", "another metric", True, [Score("a", 1e6), Score("b", 2.0)]).is_logarithmic
    assert draw_scores([]) is None


def test_speeds_begin_at_zero() -> None:
    axes = only(draw_speeds([Speeds("slow", [1000.0, 1200.0, 1100.0]), Speeds("none", []), Speeds("fast", [2000.0])]))
    assert texts(axes.get_yticklabels()) == ["slow", "fast"]
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] > 2000
    assert [each.get_xdata()[0] for each in axes.lines if to_hex(each.get_color()) == GREY] == [1100.0, 2000.0]
    assert draw_speeds([Speeds("none", [])]) is None


def test_scores_while_runs_trained_have_a_panel_for_each_task_and_a_line_for_each_run() -> None:
    ours = Line("alibi", [Point(1e6, 0.52, 0.5, 0.54), Point(2e6, 0.6, 0.58, 0.62)])
    panels = [ScoreCurves("piqa", "acc", [ours, Line("rotary", [Point(2e6, 0.55)])]), ScoreCurves("none", "acc", [])]
    figure = draw_score_curves([*panels, ScoreCurves("winogrande", "acc", [ours])])
    assert figure is not None
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["piqa: acc", "winogrande: acc"]
    assert [len(axes.containers) for axes in (first, second)] == [2, 1]
    assert [each[0].get_color() for each in (first.containers[0], second.containers[0])] == [BLUE, BLUE]
    assert legend_of(figure) == ["alibi", "rotary"]
    assert draw_score_curves(panels[1:]) is None


LONG = "recipe-without_everything_that_was_ever_added_to_it"


def samples() -> list[Figure | None]:
    """Return a figure of each kind, with long names."""
    names = (LONG, f"{LONG}_but_one", "alibi, yarn")
    losses = [LossCurve(name, falling(9.0), [Point(20_000, 0.4)]) for name in names]
    effects = [effect("experiment", name, LONG) for name in names]
    ours, theirs = Score(LONG, 4e13, 1e13, 9e13), Score("GPT-Neo 350M", 9.8)
    scores = ScorePanel("LAMBADA, 30 items", "ppl", False, [ours], [theirs])
    return [
        draw_run([{"step": 1, "tokens": 1e9, "train/loss": 5.0}], "a name", 4.0),
        draw_losses(losses, "positions, learning_rate"),
        draw_factor([rates(5.0, 4.5, 4.3, 4.1, best=0.01, name=name) for name in names], "learning rate", "loss"),
        draw_lengths([lengths(name, 64, 4.0, 4.0, 4.0) for name in names], "held-out text"),
        draw_positions([PositionLine(name, [Point(1, 7.0)], [1, 4], 2) for name in names], "held-out text"),
        draw_effects(effects, "validation bits per byte"),
        draw_scores([scores, scores], f"{LONG}, float32, context 1,024, only the first 30 items of each task"),
        draw_speeds([Speeds(name, [1000.0, 1200.0]) for name in names]),
        draw_score_curves(
            [ScoreCurves("piqa", "acc", [Line(name, [Point(1e9, 0.5, 0.4, 0.6)]) for name in names])] * 3
        ),
        draw_budgets([BudgetLine(name, [Point(1e6, 5.0), Point(2e6, 4.0)]) for name in names]),
    ]


@pytest.mark.parametrize("number", range(10))
def test_nothing_is_cut_off_and_the_plot_keeps_its_width(number: int) -> None:
    figure = samples()[number]
    assert figure is not None
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.02
    assert box.y0 > -0.02
    assert box.x1 < width + 0.02
    assert box.y1 < height + 0.02
    places = [axes.get_position() for axes in figure.axes]
    n_columns = len({round(place.x0, 2) for place in places})
    assert sum(place.width for place in places[:n_columns]) > 0.5
    assert max(place.height for place in places) > 0.3
