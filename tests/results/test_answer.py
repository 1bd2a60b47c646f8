"""The first sentences of a report on made-up runs: findings, their intervals, and limits."""

import itertools
import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from gptstar.results.answer import answer
from gptstar.results.arms import CONTEXT, RATE, arms_of, by_levels
from gptstar.results.evaluations import LENGTH_FIGURES
from gptstar.results.extrapolation import against_training, between_contexts
from gptstar.results.figures import lengths_figure
from gptstar.results.length_answer import longest_changes, whether_it_holds
from gptstar.results.tried import at_best_rate, numeric_factors, values_tried

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
    value, *_ = interval(list(losses[0.003]))
    differences = [best - following for best, following in zip(losses[0.003], losses[0.01], strict=True)]
    change, least, most = (f"{each:+.3f}".replace("-", "−") for each in interval(differences))
    p = stats.ttest_1samp(differences, 0).pvalue
    assert said.findings == (
        f"Of 4 learning rates, 0.003 has the lowest validation loss: {value:.3f} nats per token, {change} "
        f"[{least}, {most}] against the next, 0.01 (95 % interval over 3 seeds, p = {p:.2g}; preliminary).",
    )
    assert said.limits == (
        "There are 3 seeds, so every effect is preliminary: a significant one needs 5 seeds and p < 0.01.",
    )


def test_one_seed_the_edge_and_few_steps_are_said() -> None:
    said = answer(search({0.001: (4.5,), 0.003: (4.2,), 0.01: (4.1,)}, steps=30), NO_LENGTHS, [RATE])
    assert said.findings == (
        "Of 3 learning rates, 0.01 has the lowest validation loss: 4.100 nats per token, −0.100 against the "
        "next, 0.003 (one seed).",
    )
    assert said.limits == (
        "There is one seed, so the variation between seeds is unknown, and no interval can be given.",
        "The runs are short (30 steps, 30,720 tokens): the order of the arms may change with more steps.",
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
        f"The validation loss is {mean:.3f} [{low:.3f}, {high:.3f}] nats per token (95 % interval over 5 seeds).",
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
        "against the next, rotary, averaged over model.d_model (95 % interval over 5 seeds, p < 0.0001; significant), "
        "each arm" in positions
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
    limit = "The runs have different tokens, so losses per token aren't comparable: these are bits per byte."
    assert limit in said.limits
    assert "Only one learning rate was tried, 0.001: some arms may be better at another." in said.limits
    contexts = made_up(*({CONTEXT: length, "validation_loss": length / 100} for length in (64, 128)))
    said = answer(contexts, NO_LENGTHS, [CONTEXT])
    assert said.findings[0].startswith(
        "Of 2 training contexts, each validated at its own, 64 has the lowest validation loss"
    )
    assert said.limits[-1].startswith("Each run is validated at its own training context")


def read_at(runs: pd.DataFrame, changes: list[float], **more: Any) -> pd.DataFrame:
    """Return readings of runs trained at 64, with half of the change at 2 × and all of it at 8 ×."""
    lines = [
        {"study": "s", "run": run, "trained_at": 64.0, "scaling": "none", "multiple": float(multiple)}
        | {"context_length": 64 * multiple, "loss": 4.0 + share * change, "reference": 64.0, "targets": "abc"}
        | {"change_low": change - 0.02, "change_high": change + 0.03, **more}
        for run, change in zip(runs["run"], changes, strict=True)
        for multiple, share in ((1, 0.0), (2, 0.5), (8, 1.0))
    ]
    return pd.DataFrame(lines)


def test_the_change_beyond_the_training_context_is_said() -> None:
    runs = made_up(*({"seed": seed, "validation_loss": 4.0} for seed in range(3)))
    changes = [0.1, 0.11, 0.12]
    _, low, high = interval(changes)
    p = stats.ttest_1samp(changes, 0).pvalue
    said = answer(runs, read_at(runs, changes), ["seed"])
    assert said.findings[1] == (
        f"Read at 8 × its training context, the loss of the model changes by +0.110 [{low:+.3f}, {high:+.3f}] nats "
        f"per token (95 % interval over 3 seeds, p = {p:.2g}; preliminary)."
    )


def swept(targets: dict[int, str], rise: dict[int, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return runs of three seeds at each training context, and their readings at 1 ×, 2 × and 8 ×."""
    pairs = [(context, seed) for context in targets for seed in range(3)]
    runs = made_up(*({CONTEXT: at, "seed": seed, "validation_loss": 4.0 - at / 1000} for at, seed in pairs))
    lines = [
        {"study": "s", "run": str(number), "trained_at": float(at), "scaling": "none", "multiple": float(multiple)}
        | {"context_length": at * multiple, "reference": float(at), "targets": targets[at], "change_low": 0.0}
        | {"loss": 4.0 + at / 1000 + (1 + seed / 10) * rise[at] * (multiple > 1), "change_high": 0.0}
        for number, (at, seed) in enumerate(pairs)
        for multiple in (1, 2, 8)
    ]
    return runs, pd.DataFrame(lines)


def test_training_contexts_are_compared_at_the_same_length_on_the_same_targets() -> None:
    """The validation prefers 128, each at its own context; at 128 and 1,024 tokens read by both, 64 is better."""
    runs, lengths = swept({64: "abc", 128: "abc"}, {64: 0.01, 128: 0.01})
    said = answer(runs, lengths, [CONTEXT, "seed"])
    held, at_128, by_validation = said.findings
    assert held.startswith(
        "Read at 8 × their training context, the loss, averaged over 2 training contexts, changes by"
    )
    assert at_128.startswith(
        "Of 2 training contexts, all reading 128 tokens (the longest length that all were read at), 64 has the lowest "
        "loss: 4.0750 nats per token, −0.0530 ["
    )
    assert by_validation.startswith("Of 2 training contexts, each validated at its own, 128 has the lowest validation")
    assert not any("targets" in each for each in said.limits)
    assert said.limits[-1].startswith("All seeds read the same text, so intervals over seeds")


def test_the_longest_common_length_and_the_longest_training_context_are_compared() -> None:
    runs, lengths = swept({64: "abc", 256: "abc"}, {64: 0.01, 256: 0.01})
    more = lengths[lengths["multiple"] == 8].assign(context_length=256, multiple=4.0)
    lengths = pd.concat([lengths, more[more["trained_at"] == 64]], ignore_index=True)
    found = [each for each in answer(runs, lengths, [CONTEXT, "seed"]).findings if "all reading" in each]
    assert [each.partition("all reading ")[2].partition("),")[0] for each in found] == [
        "512 tokens (the longest length that all were read at",
        "256 tokens (the longest training context",
    ]


def test_training_contexts_that_change_differently_have_a_sentence_each() -> None:
    runs, lengths = swept({64: "abc", 128: "abc"}, {64: 0.1, 128: -0.02})
    findings = answer(runs, lengths, [CONTEXT, "seed"]).findings
    assert "averaged over 2 training contexts, changes by +0.044 [" in findings[0]
    assert findings[1].startswith("Trained at 64 tokens, the loss changes by +0.110 [")
    assert findings[2].startswith("Trained at 128 tokens, the loss changes by −0.022 [")
    table = against_training(runs, lengths, [CONTEXT, "seed"])
    assert list(table.loc[table["context"] == "8 ×", "trained at"]) == ["64", "128", "average"]


@pytest.mark.parametrize(
    ("targets", "why"),
    [({64: "a", 128: "b"}, "The runs of each training context scored other targets"),
     ({64: "", 128: ""}, "It is not known which targets were scored")],
)  # fmt: skip
def test_training_contexts_on_other_targets_are_not_compared(targets: dict[int, str], why: str) -> None:
    runs, lengths = swept(targets, {64: 0.01, 128: 0.01})
    said = answer(runs, lengths, [CONTEXT, "seed"])
    assert "validation loss" in said.findings[0]
    assert not any("all reading" in each for each in said.findings)
    (limit,) = [each for each in said.limits if each.startswith(why)]
    assert "evaluation.protocol=fixed_targets evaluation.room=1024 evaluation.targets=32 checkpoint=" in limit
    assert between_contexts(runs, lengths, [CONTEXT, "seed"]).empty


def test_the_best_training_context_at_the_edge_is_said() -> None:
    runs = made_up(*({CONTEXT: length, "validation_loss": 5 - length / 100} for length in (64, 128, 256)))
    edge = "The best training context, 256, is the highest of the 3 tried: a higher one may be better."
    assert edge in answer(runs, NO_LENGTHS, [CONTEXT]).limits


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [([0.001, 0.002, 0.003], "Yes"), ([0.1, 0.101, 0.102], "No"), ([0.0, 0.02, 0.04], "Unknown"), ([0.1], "Unknown")],
)
def test_whether_the_loss_holds_begins_with_the_verdict(changes: list[float], verdict: str) -> None:
    runs = made_up(*({"seed": seed, "validation_loss": 4.0} for seed in range(len(changes))))
    lengths = read_at(runs, changes, reference=32.0)
    (change,) = longest_changes(runs, lengths, ["seed"])
    assert whether_it_holds(change).startswith(f"{verdict}: at 8 × the training context, the loss of the model changes")


def test_the_interval_of_one_run_is_over_the_text() -> None:
    runs = made_up({"validation_loss": 4.0})
    said = answer(runs, read_at(runs, [-0.1]), [])
    assert said.findings[1].endswith(
        "by −0.100 [−0.120, −0.070] nats per token (one seed; 95 % interval over the text)."
    )
    elsewhere = read_at(runs, [-0.1]).assign(reference=32.0)  # then the interval is of another change
    assert answer(runs, elsewhere, []).findings[1].endswith("by −0.100 nats per token (one seed).")


def test_only_numbers_have_a_minus() -> None:
    arms = [{"experiment": arm, "seed": 0, "validation_loss": 4.0} for arm in ("v-01", "-1.5")]
    runs = made_up(*arms)
    said = answer(runs, read_at(runs, [-0.1, 0.1]), ["experiment"])
    assert [each.partition(" nats")[0].partition("the loss of ")[2] for each in said.findings[1:]] == [
        "v-01 changes by −0.100 [−0.120, −0.070]",
        "-1.5 changes by +0.100 [+0.080, +0.130]",
    ]


def test_runs_that_were_repeated_count_as_their_mean_beyond_the_training_context() -> None:
    """The sentence, the table and the plot use the same seeds: changes of (0.1 + 0.3) / 2 and 0.4."""
    runs = made_up(*({"seed": seed, "validation_loss": 4.0} for seed in (0, 0, 1)))
    lengths = read_at(runs, [0.1, 0.3, 0.4])
    _, low, high = interval([0.2, 0.4])
    text = f"+0.300 [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    assert f"the loss of the model changes by {text} nats" in answer(runs, lengths, ["seed"]).findings[1]
    table = against_training(runs, lengths, ["seed"])
    assert table.set_index("context").loc["8 ×", ["change", "seeds"]].to_list() == [text, 2]
    figure = lengths_figure(runs, lengths, ["seed"])
    assert figure is not None
    loss, change = figure.axes
    assert list(loss.containers[0][0].get_ydata()) == pytest.approx([4.0, 4.15, 4.3])
    assert list(change.containers[0][0].get_ydata()) == pytest.approx([0.15, 0.3])
    segment = change.containers[0][2][0].get_segments()[1]
    assert list(segment[:, 1]) == pytest.approx([low, high])


def test_values_are_in_their_order_and_the_best_has_all_seeds() -> None:
    runs = search({0.001: (4.5, 4.6), 0.01: (4.0, math.nan), 0.003: (4.2, 4.3), 0.0003: (5.0, 5.1)})
    runs["state"] = "finished"
    factors = [RATE, "seed"]
    assert list(by_levels(runs, factors)[RATE].unique()) == [0.0003, 0.001, 0.003, 0.01]
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


def test_an_interval_that_is_narrow_has_more_digits() -> None:
    said = answer(search({0.001: (4.1, 4.1), 0.002: (4.0, 4.0002)}), NO_LENGTHS, [RATE, "seed"])
    change, low, high = (f"{each:.4f}".replace("-", "−") for each in interval([-0.1, -0.0998]))
    assert (
        f"0.002 has the lowest validation loss: 4.0001 nats per token, {change} [{low}, {high}] against"
        in said.findings[0]
    )


def test_a_run_that_was_repeated_counts_once_for_its_rate() -> None:
    """Counted as runs, 0.001 would be the only complete rate, and its mean of 4.2 the lowest."""
    repeated = [(0.001, 0, 4.0), (0.001, 0, 4.0), (0.001, 1, 4.6), (0.003, 0, 4.2), (0.003, 1, 4.3)]
    runs = made_up(*({RATE: rate, "seed": seed, "validation_loss": loss} for rate, seed, loss in repeated))
    (tried,) = values_tried(runs, RATE, [RATE, "seed"])
    assert tried.best == 0.003
    assert list(tried.values["mean"]) == pytest.approx([4.3, 4.25])
    assert list(tried.values["size"]) == [2, 2]
    assert (
        "0.003 has the lowest validation loss: 4.250 nats per token, "
        in answer(runs, NO_LENGTHS, [RATE, "seed"]).findings[0]
    )
    arms = pd.concat([runs.assign(arm="a"), runs.assign(arm="b")], ignore_index=True)
    assert set(at_best_rate(arms, ["arm", RATE, "seed"])[0][RATE]) == {0.003}


def test_the_sentence_names_the_best_of_the_plot_and_of_the_table() -> None:
    runs = search({0.001: (4.5, 4.6), 0.01: (4.0, math.nan), 0.003: (4.2, 4.3), 0.03: (4.8, 4.9)})
    said = answer(runs, NO_LENGTHS, [RATE, "seed"])
    (tried,) = values_tried(runs, RATE, [RATE, "seed"])
    assert tried.best == 0.003
    lowest = "Of 4 learning rates, 0.003 has the lowest validation loss of the 3 with all runs: 4.250 nats per token, "
    assert said.findings[0].startswith(lowest)
    assert "against the next, 0.001 (" in said.findings[0]


def test_rates_of_other_seeds_are_compared_where_they_have_a_pair() -> None:
    nan = math.nan
    said = answer(search({0.001: (4.5, 4.6), 0.003: (4.2, nan), 0.01: (nan, 4.1)}), NO_LENGTHS, [RATE, "seed"])
    assert said.findings == (
        "Of 3 learning rates, 0.001 alone has all runs and this validation loss: 4.550 nats per token, +0.500 against "
        "0.01 (one seed).",
    )
    apart = answer(search({0.001: (4.5, nan), 0.003: (nan, 4.2)}), NO_LENGTHS, [RATE, "seed"])
    lowest = "The lowest validation loss is 4.200 nats per token, of the run 3 (optimizer.learning_rate 0.003, seed 1)."
    assert apart.findings[0] == lowest


def test_a_search_over_several_numbers_says_what_was_lowest() -> None:
    tried = [(1.2e-3, 10, 4.5), (3.4e-3, 25, 4.2), (8e-3, 40, 4.9)]
    runs = made_up(*({RATE: rate, "schedule.warmup_steps": n, "validation_loss": loss} for rate, n, loss in tried))
    said = answer(runs, NO_LENGTHS, [RATE, "schedule.warmup_steps"])
    assert said.findings == (
        "The lowest validation loss is 4.200 nats per token, of the run 1 (optimizer.learning_rate 0.0034, "
        "schedule.warmup_steps 25).",
        "No two finished runs differ in a single setting, so the effect of a setting is not known.",
    )


def test_only_tuned_arms_are_said_to_be_at_the_edge() -> None:
    """The widest model is best at each rate, but only its best rate may be reported as an edge."""
    runs = [
        {RATE: rate, "model.d_model": width, "validation_loss": 4.0 + abs(rate - 2e-3) * 100 - width / 1000}
        for rate in (1e-3, 2e-3, 4e-3)
        for width in (64, 128, 256)
    ]
    factors = [RATE, "model.d_model"]
    said = answer(made_up(*runs), NO_LENGTHS, factors)
    edges = [each for each in said.limits if "a higher one may be better" in each]
    assert edges == ["The best d model, 256, is the highest of the 3 tried: a higher one may be better."]
    (tried,) = values_tried(made_up(*runs), "model.d_model", factors)
    assert list(tried.values["mean"]) == pytest.approx([3.936, 3.872, 3.744])


def test_the_arm_at_the_edge_is_named_by_its_settings_and_steps_are_not_tuned() -> None:
    factors = ["model.d_model", RATE, "total_steps"]
    runs = [
        {**dict(zip(factors, levels, strict=True)), "validation_loss": 5.0 - levels[1] * 10 - levels[2] / 1000}
        for levels in itertools.product((64, 128), (1e-3, 2e-3), (100, 200, 300))
    ]
    edges = [each for each in answer(made_up(*runs), NO_LENGTHS, factors).limits if each.startswith("The best")]
    assert len(edges) == 6
    assert edges[0] == (
        "The best learning rate for d model 64 and total steps 100, 0.002, is the highest of the 2 tried: a higher one "
        "may be better."
    )


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_left_out(loss: float) -> None:
    runs = search({0.001: (4.5, 4.4), 0.003: (4.2, 4.1), 0.0003: (5.0, loss)})
    said = answer(runs, NO_LENGTHS, [RATE, "seed"])
    assert (
        "0.003 has the lowest validation loss of the 2 with all runs: 4.150 nats per token, −0.300" in said.findings[0]
    )
    assert said.limits[0] == ("1 of 6 runs are left out: 1 finished without a validation loss that is a number.")
