"""The first sentences of a report, on made-up runs: what came out, within which interval, what can't be concluded."""

import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from gptstar.results.answer import answer
from gptstar.results.arms import arms_of, in_order
from gptstar.results.evaluations import LENGTH_FIGURES
from gptstar.results.extrapolation import CONTEXT
from gptstar.results.factors import RATE
from gptstar.results.frames import AT_EDGE
from gptstar.results.tried import numeric_factors, values_tried

NO_LENGTHS = pd.DataFrame(columns=list(LENGTH_FIGURES))


def made_up(*runs: dict[str, Any], steps: int = 1000, rate: float = 1e-3) -> pd.DataFrame:
    lines = [
        {
            "run": str(number),
            "state": "finished",
            "step": steps,
            "tokens": 1024 * steps,
            RATE: rate,
            "began": f"2026-11-01T00:00:{number:02}",
            "data.fingerprint": "a",
            "model.n_vocab": 300,
            **run,
        }
        for number, run in enumerate(runs)
    ]
    return pd.DataFrame(lines)


def search(losses: dict[float, tuple[float, ...]], **more: Any) -> pd.DataFrame:
    runs = [
        {RATE: rate, "seed": seed, "validation_loss": loss}
        for rate, of_rate in losses.items()
        for seed, loss in enumerate(of_rate)
    ]
    return made_up(*runs, **more)


def interval(values: list[float]) -> tuple[float, float, float]:
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return sum(values) / len(values), low, high


def test_a_search_is_answered_in_a_sentence_with_an_interval() -> None:
    losses = {0.001: (4.5, 4.6, 4.55), 0.003: (4.2, 4.25, 4.27), 0.0003: (5.0, 5.1, 5.2), 0.01: (4.4, 4.35, 4.45)}
    said = answer(search(losses), NO_LENGTHS, [RATE, "seed"])
    value, low, high = interval(list(losses[0.003]))
    differences = [best - following for best, following in zip(losses[0.003], losses[0.01], strict=True)]
    change, least, most = (f"{each:+.3f}".replace("-", "−") for each in interval(differences))
    p = stats.ttest_1samp(differences, 0).pvalue
    assert said.findings == (
        f"Of 4 learning rates, 0.003 has the lowest validation loss: {value:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}), {change} [{least}, {most}] "
        f"against the next, 0.01 (preliminary, 3 seeds, p = {p:.2g}).",
    )
    assert said.limits == (
        "There are 3 seeds, so every effect is preliminary: it takes 5 seeds and p < 0.01 to be called significant.",
    )


def test_one_seed_the_edge_and_few_steps_are_said() -> None:
    said = answer(search({0.001: (4.5,), 0.003: (4.2,), 0.01: (4.1,)}, steps=30), NO_LENGTHS, [RATE])
    assert said.findings == (
        "Of 3 learning rates, 0.01 has the lowest validation loss: 4.100, −0.100 against the next, 0.003 (one seed).",
    )
    assert said.limits == (
        "There is one seed, so nothing is known of how much another would differ, and no interval can be given.",
        "The runs are short (30 steps, 30,720 tokens): the order of the arms may be another after more steps.",
        "The best learning rate, 0.01, is the highest of the 3 tried: a higher one may be better.",
    )


def test_runs_that_did_not_finish_are_counted() -> None:
    runs = search({0.001: (4.5, 4.4), 0.003: (4.2, 4.1), 0.0003: (5.0, math.nan)})
    runs.loc[0, "state"], runs.loc[1, "state"] = "failed", "running"
    said = answer(runs, NO_LENGTHS, [RATE, "seed"])
    left_out = "1 failed, 1 running, 1 finished without a validation loss that is a number"
    assert said.limits[0] == f"3 of 6 runs are left out: {left_out}."
    none = answer(runs.assign(state="killed"), NO_LENGTHS, [RATE, "seed"])
    assert none.findings == ("No run has finished with a validation loss: 6 killed.",)
    assert answer(pd.DataFrame(), NO_LENGTHS, []).findings == ("There is no run.",)


def test_runs_that_differ_in_their_seed_alone_have_a_mean() -> None:
    values = [4.0, 4.1, 4.3, 4.2, 4.4]
    runs = made_up(*({"seed": seed, "validation_loss": value} for seed, value in enumerate(values)))
    mean, low, high = interval(values)
    said = answer(runs, NO_LENGTHS, ["seed"])
    assert said.findings == (
        f"The validation loss over 5 seeds is {mean:.3f} (95 % interval {low:.3f} to {high:.3f}).",
    )
    assert said.limits == ()


def test_arms_are_compared_at_their_best_rates_averaged_over_the_rest() -> None:
    runs = [
        {"model.positions": kind, RATE: rate, "model.d_model": width, "seed": seed, "validation_loss": loss}
        for kind, worse in (("alibi", 0.0), ("rotary", 0.2))
        for rate, beside in ((1e-3, 0.3), (2e-3, 0.0), (4e-3, 0.1))
        for width in (64, 128)
        for seed in range(5)
        for loss in (4.0 + worse + beside + 0.01 * seed + (0.001 * seed if worse else 0) - width / 1000,)
    ]
    frame = made_up(*runs)
    said = answer(frame, NO_LENGTHS, ["model.positions", RATE, "model.d_model", "seed"])
    positions, width = said.findings
    assert positions.startswith("Of 2 values of model.positions, alibi has the lowest validation loss: 3.9")
    assert (
        "against the next, rotary, averaged over model.d_model (significant, 5 seeds, p < 0.0001), each arm"
        in positions
    )
    assert positions.endswith("each arm at its best learning rate.")
    assert "Of 2 values of model.d_model, 128 has the lowest" in width
    assert said.limits == ()


def test_what_makes_losses_incomparable_is_said() -> None:
    runs = made_up(
        *({"data.fingerprint": text, "seed": 0, "validation_loss": 4.0, "validation_bits_per_byte": bits}
          for text, bits in (("a", 1.5), ("b", 1.4)))
    )  # fmt: skip
    said = answer(runs, NO_LENGTHS, ["data.fingerprint"])
    assert "b has the lowest validation bits per byte: 1.400, −0.100 against the next, a (one seed)" in said.findings[0]
    assert "The runs read other tokens, so losses per token can't be compared: these are bits per byte." in said.limits
    assert "Only one learning rate was tried, 0.001: an arm may gain from another." in said.limits
    contexts = made_up(*({CONTEXT: length, "validation_loss": length / 100} for length in (64, 128)))
    said = answer(contexts, NO_LENGTHS, [CONTEXT])
    assert said.findings[0].startswith("Of 2 training contexts, 64 has the lowest validation loss")
    assert said.limits[-1].startswith("Each run is validated at its own context length")


def test_the_change_beyond_the_training_context_is_said() -> None:
    runs = made_up(*({"seed": seed, "validation_loss": 4.0} for seed in range(3)))
    readings = [
        {"study": "s", "run": str(seed), "trained_at": 64, "rotary_scaling": "none", "multiple": multiple}
        | {"context_length": 64 * multiple, "loss": 4.0 + (multiple > 1) * (0.1 + 0.01 * seed)}
        for seed in range(3)
        for multiple in (1, 2, 8)
    ]
    _, low, high = interval([0.1, 0.11, 0.12])
    said = answer(runs, pd.DataFrame(readings), ["seed"])
    assert said.findings[1] == (
        f"Read at 8 × its training context, the loss of the model changes by +0.1100 [{low:+.4f}, {high:+.4f}] nats "
        "per token (preliminary)."
    )


def test_values_are_in_their_order_and_the_best_has_all_seeds() -> None:
    runs = search({0.001: (4.5, 4.6), 0.01: (4.0, math.nan), 0.003: (4.2, 4.3), 0.0003: (5.0, 5.1)})
    runs["state"] = "finished"
    factors = [RATE, "seed"]
    assert list(in_order(runs, factors)[RATE].unique()) == [0.0003, 0.001, 0.003, 0.01]
    assert [name for name, _ in arms_of(runs, [RATE])] == ["0.0003", "0.001", "0.003", "0.01"]
    (tried,) = values_tried(runs, RATE, factors)
    assert list(tried.values.index) == [0.0003, 0.001, 0.003, 0.01]
    assert list(tried.values["size"]) == [2, 2, 2, 1]
    assert (tried.best, tried.is_at_edge) == (0.003, False)  # 0.01 lacks a seed


@pytest.mark.parametrize(
    ("factor", "levels", "has_curve"),
    [(RATE, [1e-3, 2e-3], True), ("model.n_heads", [2, 4], False), ("model.n_heads", [2, 4, 8], True),
     ("model.positions", ["a", "b", "c"], False), ("a.switch", [True, False], False)],
)  # fmt: skip
def test_numbers_with_several_values_have_a_curve(factor: str, levels: list[object], has_curve: bool) -> None:
    runs = made_up(*({factor: level} for level in levels))
    assert numeric_factors(runs, [factor, "seed"]) == ([factor] if has_curve else [])
    assert AT_EDGE not in runs


def test_an_interval_that_is_narrow_has_more_digits() -> None:
    said = answer(search({0.001: (4.1, 4.1), 0.002: (4.0, 4.0002)}), NO_LENGTHS, [RATE, "seed"])
    _, low, high = interval([4.0, 4.0002])
    assert f"0.002 has the lowest validation loss: 4.0001 (95 % interval {low:.4f} to {high:.4f})" in said.findings[0]
