"""Effects over seeds: against SciPy, by simulation, and on designs whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.arms import RATE
from gptstar.results.factors import effect_text, effects, level_effects, tokens_to
from gptstar.results.figures import factor_figure
from gptstar.results.tried import at_best_rate


def test_one_cell_is_a_paired_t_test() -> None:
    random = np.random.default_rng(3)
    before, after = random.normal(3, 0.1, 7), random.normal(3.05, 0.1, 7)
    found = blocked_effect({seed: {"": change} for seed, change in enumerate(after - before)})
    theirs = stats.ttest_rel(after, before)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert (found.n_seeds, found.n_cells) == (7, 1)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_intervals_cover_whether_or_not_a_seed_moves_all_its_cells(shared: float) -> None:
    """Cells of one seed are not independent where its data order helps an arm in all of them."""
    random = np.random.default_rng(17)
    n_seeds, n_cells, trials, truth = 5, 4, 4000, 0.3
    covered = 0
    for _ in range(trials):
        noise = random.normal(0, 1, (n_seeds, n_cells)) + shared * random.normal(0, 1, (n_seeds, 1))
        found = blocked_effect({seed: dict(enumerate(truth + noise[seed])) for seed in range(n_seeds)})
        covered += found.low <= truth <= found.high
    assert covered / trials == pytest.approx(0.95, abs=0.012)


def test_a_claim_takes_five_seeds_and_a_small_p() -> None:
    clear = {seed: {"": 1.0 + 0.01 * seed} for seed in range(5)}
    assert blocked_effect(clear).verdict == "significant"
    assert blocked_effect({seed: clear[seed] for seed in range(4)}).verdict == "preliminary"
    assert blocked_effect({0: {"": 1.0}}).verdict == "one seed: says nothing"
    assert math.isnan(blocked_effect({0: {"": 1.0}}).low)
    assert (
        blocked_effect({seed: {"": float((-1) ** seed)} for seed in range(6)}).verdict == "not told apart from chance"
    )
    with pytest.raises(ValueError, match="no pair"):
        blocked_effect({})


def design(seeds: int = 3) -> pd.DataFrame:
    """Width costs 0.5, depth gains 0.2, and a seed is worth as much as its number."""
    return pd.DataFrame(
        [
            {
                "wide": wide,
                "deep": deep,
                "seed": seed,
                "validation_loss": 3 + 0.5 * wide - 0.2 * deep + seed,
                "speed": 2.0**wide,
            }
            for wide in (0, 1)
            for deep in (0, 1)
            for seed in range(seeds)
        ]
    )


def test_effects_are_those_of_the_design() -> None:
    wide, deep = level_effects(design(), ["wide", "deep", "seed"])
    assert (wide.factor, wide.level, wide.against, wide.left_out) == ("wide", 1, 0, 0)
    assert wide.effect.value == pytest.approx(0.5)
    assert deep.effect.value == pytest.approx(-0.2)
    assert (deep.effect.n_seeds, deep.effect.n_cells) == (3, 2)
    ratio, _ = level_effects(design(), ["wide", "deep", "seed"], "speed", ratio=True)
    assert math.exp(ratio.effect.value) == pytest.approx(2)
    assert ratio.text.startswith("× 2.000")


def test_a_seed_without_all_cells_is_left_out_and_said() -> None:
    frame = design().drop(index=0)  # a run that failed: its partners have nothing to stand against
    wide, deep = level_effects(frame, ["wide", "deep", "seed"])
    assert wide.effect.value == pytest.approx(0.5)
    assert (wide.effect.n_seeds, wide.left_out) == (2, 3)
    assert deep.left_out == 3


@pytest.mark.parametrize(
    ("cells", "n_seeds", "n_cells"),
    [
        ([{1, 2, 3}, *4 * [{1, 2}]], 5, 2),  # one seed is ahead of the others
        ([{1}, {1}, {1}, {2}, {2}], 3, 1),  # the same number of cells, but not the same ones
        ([{1, 2}, {1, 3}, {1, 4}], 3, 1),
    ],
)
def test_seeds_are_compared_in_the_same_cells(cells: list[set[int]], n_seeds: int, n_cells: int) -> None:
    found = blocked_effect({seed: {cell: 10.0 * cell for cell in each} for seed, each in enumerate(cells)})
    assert (found.n_seeds, found.n_cells) == (n_seeds, n_cells)
    assert (found.low, found.high) == (found.value, found.value)  # cells that are not alike would spread


def test_a_run_that_was_repeated_counts_once() -> None:
    frame = pd.concat([design(), design().assign(validation_loss=lambda runs: runs["validation_loss"] + 0.2)])
    wide, _ = level_effects(frame, ["wide", "deep", "seed"])
    assert wide.effect.value == pytest.approx(0.5)
    assert (wide.effect.n_seeds, wide.effect.n_cells, wide.left_out) == (3, 2, 0)


def test_what_never_differs_alone_has_no_effect() -> None:
    frame = design()
    assert not level_effects(frame[frame["wide"] == frame["deep"]], ["wide", "deep", "seed"])


def test_each_arm_is_taken_at_its_own_best_rate() -> None:
    """One arm wants a small rate and the other a large one; at any one rate they would seem to differ."""
    losses = {("a", 1e-3): 3.0, ("a", 1e-2): 3.5, ("b", 1e-3): 3.5, ("b", 1e-2): 3.0}
    frame = pd.DataFrame(
        [
            {"arm": arm, RATE: rate, "seed": seed, "validation_loss": loss + 0.01 * seed}
            for (arm, rate), loss in losses.items()
            for seed in range(3)
        ]
    )
    tuned, factors = at_best_rate(frame, ["arm", RATE, "seed"])
    assert factors == ["arm", "seed"]
    assert len(tuned) == 6
    (found,) = level_effects(tuned, factors)
    assert found.effect.value == pytest.approx(0)
    assert at_best_rate(frame, ["arm", "seed"])[0] is frame


def test_a_rate_that_lost_seeds_is_not_the_best() -> None:
    """Of the large rate one run lived, and a lucky one; of another arm nothing was validated."""
    lines = [("a", 1e-3, seed, 3.0) for seed in range(3)] + [("a", 1e-2, 0, 2.0)]
    lines += [("b", 1e-3, seed, 3.5) for seed in range(3)] + [("c", 1e-3, seed, math.nan) for seed in range(3)]
    frame = pd.DataFrame(lines, columns=["arm", RATE, "seed", "validation_loss"])
    tuned, factors = at_best_rate(frame, ["arm", RATE, "seed"])
    (found,) = level_effects(tuned, factors)
    assert (found.effect.value, found.effect.n_seeds) == (pytest.approx(0.5), 3)


@pytest.mark.parametrize(("losses", "is_decided"), [((3.5, 3.0, 3.5), True), ((3.5, 3.2, 3.0), False)])
def test_an_arm_at_the_edge_of_its_rates_is_not_decided(losses: tuple[float, ...], is_decided: bool) -> None:
    arms = {"a": (4.5, 4.0, 4.5), "b": losses}
    lines = [
        {"arm": arm, RATE: rate, "seed": seed, "validation_loss": loss + 0.001 * seed * (1 + (arm == "b"))}
        for arm, of_arm in arms.items()
        for rate, loss in enumerate(of_arm, start=1)
        for seed in range(6)
    ]
    (found,) = level_effects(*at_best_rate(pd.DataFrame(lines), ["arm", RATE, "seed"]))
    assert (found.effect.is_significant, found.effect.verdict.startswith("not decided")) == (is_decided, not is_decided)


def test_where_tokens_differ_bits_per_byte_are_compared_everywhere() -> None:
    """Fewer and larger tokens have more loss each, and here fewer bits per byte: the report and notebooks agree."""
    lines = [
        {"run": f"{n}-{seed}", "model.n_vocab": n, "seed": seed, "validation_loss": loss + seed / 100}
        | {"validation_bits_per_byte": bits + seed / 100, "state": "finished"}
        for n, loss, bits in ((300, 4.0, 1.5), (500, 4.5, 1.4), (700, 5.0, 1.2))
        for seed in range(3)
    ]
    frame, factors = pd.DataFrame(lines), ["model.n_vocab", "seed"]
    table = effects(frame, factors)
    assert set(table["outcome"]) == {"validation_bits_per_byte"}
    assert list(table["effect"]) == pytest.approx([-0.1, -0.3])
    assert list(effects(frame, factors, "validation_loss")["effect"]) == pytest.approx([0.5, 1.0])
    found = level_effects(*at_best_rate(frame, factors))
    assert [each.effect.value for each in found] == pytest.approx([-0.1, -0.3])
    figure = factor_figure(frame, "model.n_vocab", factors)
    assert figure is not None
    assert figure.axes[0].get_ylabel().startswith("validation bits per byte")
    assert [each.get_xdata()[0] for each in figure.axes[0].lines if each.get_markersize() > 10] == [700]


def test_where_only_the_rate_varies_it_is_the_factor() -> None:
    frame = pd.DataFrame(
        [{RATE: rate, "seed": seed, "validation_loss": rate + seed} for rate in (1, 2) for seed in range(2)]
    )
    (found,) = level_effects(*at_best_rate(frame, [RATE, "seed"]))
    assert found.effect.value == pytest.approx(1)


def test_tokens_to_a_loss_lie_between_two_validations() -> None:
    curve = [(1e6, 5.0), (4e6, 4.0), (16e6, 3.0)]
    assert tokens_to(curve, 4.5) == pytest.approx(2e6)
    assert tokens_to(curve, 4.0) == pytest.approx(4e6)
    assert tokens_to(curve, 6.0) == 1e6
    assert math.isnan(tokens_to(curve, 2.0))


def test_a_change_that_rounds_to_nothing_has_no_minus() -> None:
    assert effect_text(Effect(-1e-7, -1e-7, 1e-7, 0.5, 5, 1)) == "+0.000 [+0.000, +0.000]"
