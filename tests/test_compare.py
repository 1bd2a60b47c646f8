"""Two evaluations of the same items: tests against statsmodels and scipy, coverage, and what is refused."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from gptstar.errors import ConfigError
from gptstar.evaluation.compare import CAVEAT, compare, comparison_markdown, comparison_table
from gptstar.evaluation.results import Kind, Metric, Sample, TaskResult, TaskResults, read_tasks, write_tasks
from gptstar.evaluation.statistics.paired import Paired, holm, paired_accuracy, paired_ratio

IN_BAND = (0.93, 0.97)
"""Coverage asked of 95 % intervals."""


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of A and of B, `(item,)` each."""
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0)
    return pairs[:, 0], pairs[:, 1]


def difficult(random: np.random.Generator, n: int, twin: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of two models, in twin items: right in 57 % and in 62 %.

    Args:
        twin: correlation of what twins share, of their difficulty and of what each model finds in them.
    """

    def shared() -> np.ndarray:
        pairs = math.sqrt(twin) * random.normal(size=(n // 2, 1)) + math.sqrt(1 - twin) * random.normal(
            size=(n // 2, 2)
        )
        return pairs.ravel()

    item = math.sqrt(0.5) * shared()
    ease = [item + math.sqrt(0.5) * shared() for _ in range(2)]
    return ease[0] < stats.norm.ppf(0.57), ease[1] < stats.norm.ppf(0.62)


def outcome(found: Sequence[Paired], truth: float) -> tuple[float, float]:
    """Share of intervals that hold the truth, and of p below 0.05."""
    holds = [each.low <= truth <= each.high for each in found]
    return float(np.mean(holds)), float(np.mean([each.p < 0.05 for each in found]))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 7), (9, 2), (11, 13), (12, 13), (40, 71), (130, 88)])
def test_mcnemar_is_statsmodels(only_a: int, only_b: int) -> None:
    found = paired_accuracy(*answers(301, only_a, only_b, 211))
    few = only_a + only_b < 25
    assert found.difference == pytest.approx((only_b - only_a) / (512 + only_a + only_b))
    assert found.test == ("McNemar, exact" if few else "McNemar")
    assert found.low < found.difference + 1e-12
    assert found.high > found.difference - 1e-12
    if only_a + only_b:
        reference = mcnemar([[301, only_a], [only_b, 211]], exact=few, correction=False)
        assert found.p == pytest.approx(reference.pvalue)
    else:
        assert found.p == 1


def test_the_interval_is_bonett_and_prices() -> None:
    """The example of their R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6): 0.2548067 to 0.6251933."""
    found = paired_accuracy(*answers(both=6, only_a=4, only_b=26, neither=12))
    assert (found.low, found.high) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)
    assert found.difference == pytest.approx(22 / 48)


def test_flips_of_clusters_are_scipys() -> None:
    """A dozen clusters of 1 to 5 items: every way to flip them."""
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), np.resize([1, 2, 5], 12))
    for shift in (0.0, 0.2, 0.45):
        a, b = random.random(len(clusters)) < 0.4, random.random(len(clusters)) < 0.4 + shift
        sums = [np.bincount(clusters, each) for each in (a, b)]
        reference = stats.permutation_test(
            sums,
            lambda a, b, axis: np.abs((b - a).sum(axis)),
            permutation_type="samples",
            alternative="greater",
            vectorized=True,
            n_resamples=np.inf,
        )
        found = paired_accuracy(a, b, clusters)
        assert found.p == pytest.approx(reference.pvalue)
        assert found.test == "sign flips of clusters, exact"


def test_clusters_that_hold_one_change_each_are_as_items() -> None:
    a, b = answers(31, 9, 4, 23)
    same = np.repeat(1, len(a))
    doubled = np.stack([a, same], axis=1).ravel(), np.stack([b, same], axis=1).ravel()
    found = paired_accuracy(*doubled, np.repeat(np.arange(len(a)), 2))
    assert found.p == pytest.approx(mcnemar([[31, 9], [4, 23]], exact=True).pvalue)
    assert paired_accuracy(a, b, np.arange(len(a))) == paired_accuracy(a, b)


def test_doubled_items_tell_nothing_more() -> None:
    a, b = answers(310, 90, 140, 230)
    once = paired_accuracy(a, b)
    twice = paired_accuracy(np.repeat(a, 2), np.repeat(b, 2), np.repeat(np.arange(len(a)), 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.001)
    assert twice.p == pytest.approx(once.p, rel=0.3)
    assert paired_accuracy(np.repeat(a, 2), np.repeat(b, 2)).p < once.p / 5


@pytest.mark.parametrize("n", [62, 760])
@pytest.mark.parametrize("twin", [0.0, 0.8])
def test_paired_accuracies_cover(n: int, twin: float) -> None:
    random = np.random.default_rng(2)
    clusters = np.repeat(np.arange(n // 2), 2)
    drawn = [difficult(random, n, twin) for _ in range(1500)]
    coverage, power = outcome([paired_accuracy(a, b, clusters) for a, b in drawn], 0.05)
    assert IN_BAND[0] <= coverage <= IN_BAND[1]
    assert power > (0.4 if n > 100 else 0.04)
    if twin == 0:
        assert IN_BAND[0] <= outcome([paired_accuracy(a, b) for a, b in drawn], 0.05)[0] <= IN_BAND[1]
    elif n > 100:
        assert outcome([paired_accuracy(a, b) for a, b in drawn], 0.05)[0] < 0.92


def test_no_difference_is_found_in_one_of_twenty() -> None:
    random = np.random.default_rng(3)
    clusters = np.repeat(np.arange(380), 2)
    swap = random.random((1500, 380)) < 0.5
    found = []
    for exchanged in swap:
        a, b = difficult(random, 760, 0.5)
        which = np.repeat(exchanged, 2)
        found.append(paired_accuracy(np.where(which, a, b), np.where(which, b, a), clusters))
    coverage, rejected = outcome(found, 0.0)
    assert IN_BAND[0] <= coverage <= IN_BAND[1]
    assert 0.03 <= rejected <= 0.055  # exact, so never above 0.05 but for chance


@pytest.mark.parametrize(("n", "skewed", "change"), [(60, True, 0.0), (60, True, -0.05), (503, False, 0.0)])
def test_paired_losses_cover(n: int, skewed: bool, change: float) -> None:
    """Skewed lengths, as WikiText's documents, and one number an item, as LAMBADA's."""
    random = np.random.default_rng(4)
    found = []
    for seed in range(2500 if skewed else 1000):
        z = random.normal(size=n)
        words = np.ceil(np.exp(7.94 + 0.67 * z)) if skewed else np.ones(n)
        a = 3.5 - 0.15 * z + 0.3 * random.gamma(2, 1, n)
        gain = change + 0.05 * (random.gamma(4, 1, n) - 4) / 2 + 0.02 * (z - 0.67 * skewed)
        found.append(paired_ratio(a * words, (a + gain) * words, words, n_resamples=499, seed=seed))
    coverage, rejected = outcome(found, change)
    assert IN_BAND[0] <= coverage <= IN_BAND[1]
    assert 0.03 <= rejected <= 0.07 if change == 0 else rejected > 0.9


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1])
def test_paired_means_agree_with_scipy(shift: float) -> None:
    random = np.random.default_rng(5)
    a = random.normal(size=1009)
    b = a + shift + random.normal(size=1009)
    found = paired_ratio(a, b, np.ones(1009), n_resamples=40_000)
    t_test = stats.ttest_rel(b, a)
    assert found.p == pytest.approx(t_test.pvalue, rel=0.15, abs=0.002)
    low, high = t_test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02 * (high - low))
    flipped = stats.permutation_test(
        (b, a),
        lambda b, a, axis: (b - a).mean(axis),
        permutation_type="samples",
        n_resamples=4000,
        batch=500,
        vectorized=True,
        rng=6,
    )
    assert found.p == pytest.approx(flipped.pvalue, abs=0.03)
    assert found.test == "paired bootstrap-t over items"


def test_p_and_interval_agree_and_have_no_favourite() -> None:
    random = np.random.default_rng(7)
    for seed in range(200):
        words = np.ceil(random.lognormal(5, 1, 23))
        a, b = random.gamma(3, 1, 23) * words, random.gamma(3, 1, 23) * words * 1.4
        there, back = (paired_ratio(*each, words, n_resamples=999, seed=seed) for each in ((a, b), (b, a)))
        assert (there.p <= 0.05) == (not there.low <= 0 <= there.high)
        assert (-back.high, -back.low, back.p) == pytest.approx((there.low, there.high, there.p))
        order = random.permutation(23)
        again = paired_ratio(a[order], b[order], words[order], n_resamples=999, seed=seed)
        assert (again.low, again.high, again.p) == pytest.approx((there.low, there.high, there.p))


def test_too_little_to_say() -> None:
    for found in (paired_accuracy([], []), paired_accuracy([1, 0], [1, 1], [3, 3]), paired_ratio([1.0], [2.0], [1.0])):
        assert all(math.isnan(number) for number in (found.low, found.high, found.p))
    same = paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], np.ones(3))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert paired_ratio(np.zeros(7), np.full(7, 0.3), np.ones(7)).p == 0.5**6
    with pytest.raises(ValueError, match="0 or 1"):
        paired_accuracy([0.5], [1])
    with pytest.raises(ValueError, match="numerators"):
        paired_ratio([1.0], [1.0, 2.0], [1.0, 1.0])


def test_holm_is_as_defined() -> None:
    """Smallest times 4, the next times 3 …, never falling, at most 1; one that is not known does not count."""
    assert holm([0.01, math.nan, 0.04, 0.03, 0.9]) == pytest.approx([0.04, math.nan, 0.09, 0.09, 0.9], nan_ok=True)
    assert holm([]) == []


# Results of two evaluations, as evaluate.py writes them.


def task(name: str, seed: int, n: int = 97, **changes: Any) -> TaskResult:
    """A task in which a model of this seed did its best; items are the same for every seed."""
    items, own = np.random.default_rng(sum(map(ord, name))), np.random.default_rng(seed)
    hardness = items.normal(size=n)
    words = np.ceil(items.lognormal(5, 0.7, n))
    right = hardness < own.normal(0.2 * seed, 1.0, n)
    loss = 3.0 - 0.1 * seed + 0.5 * hardness + 0.1 * own.normal(size=n)
    better = {"perplexity": False, "bits_per_byte": False}
    kinds: dict[str, Kind] = {"acc": "mean", "f1": "mean", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"}
    if name == "wikitext":
        kinds = {key: kind for key, kind in kinds.items() if kind != "mean"}
    samples = []
    for item in range(n):
        pair = (-loss[item] * words[item], words[item])
        scores = {"acc": float(right[item]), "f1": abs(loss[item]) / 9, "perplexity": pair, "bits_per_byte": pair}
        mine = {key: scores[key] for key in kinds}
        samples.append(Sample(item, f"{name}{item}", item // 2 if name == "winogrande" else item, mine))
    metrics = [Metric(key, 0.0, None, None, "Wilson", kind, better.get(key, True), n) for key, kind in kinds.items()]
    metrics.append(Metric("made_up", float(seed), None, None, "none", "other", True, n))
    metrics.append(Metric("acc", 0.5, None, None, "Wilson", "mean", True, 3, subset="clean"))
    fields = {"version": "1.0", "source": {}, "context_length": 1024, "num_fewshot": 0} | changes
    return TaskResult(task=name, metrics=tuple(metrics), samples=tuple(samples), **fields)


def results(seed: int, *tasks: TaskResult, **checkpoint: Any) -> TaskResults:
    who = {"name": f"model{seed}", "path": f"/runs/{seed}/best.ckpt", "sha256": f"{seed:064x}", "step": 10} | checkpoint
    return TaskResults(who, {"dtype": "float32", "seeds": {"fewshot": 1234}}, {"lm-eval": "0.4.13"}, tasks)


def suite(seed: int, **checkpoint: Any) -> TaskResults:
    return results(seed, *(task(name, seed) for name in ("winogrande", "wikitext", "piqa")), **checkpoint)


def test_results_are_paired_item_by_item(tmp_path: Path) -> None:
    a, b = (read_tasks(write_tasks(suite(seed), tmp_path / str(seed))) for seed in (1, 2))
    found = compare(a, b)
    assert (found.a, found.b) == ("model1", "model2")
    assert [(row.task, row.metric) for row in found.rows if row.primary] == [
        ("winogrande", "acc"),
        ("wikitext", "perplexity"),
        ("piqa", "acc"),
    ]
    rows = {(row.task, row.metric): row for row in found.rows}
    assert len(rows) == len(found.rows) == 13
    assert all(row.items == 97 for row in found.rows)

    scores = [np.asarray([sample.scores["acc"] for sample in each.tasks[0].samples]) for each in (a, b)]
    twins = paired_accuracy(*scores, np.arange(97) // 2)
    row = rows["winogrande", "acc"]
    assert (row.a, row.b, row.difference) == pytest.approx((scores[0].mean(), scores[1].mean(), twins.difference))
    assert (row.low, row.high, row.p, row.test) == (twins.low, twins.high, twins.p, "sign flips of clusters, exact")
    assert rows["piqa", "acc"].test.startswith("McNemar")
    assert rows["piqa", "f1"].test == "paired bootstrap-t over items"

    pairs = [np.asarray([sample.scores["perplexity"] for sample in each.tasks[1].samples]) for each in (a, b)]
    losses = [-pair[:, 0].sum() / pair[:, 1].sum() for pair in pairs]
    row, bits = rows["wikitext", "perplexity"], rows["wikitext", "bits_per_byte"]
    assert (row.a, row.b) == pytest.approx(tuple(np.exp(losses)))
    assert row.difference == pytest.approx(row.b - row.a)
    assert row.ratio == pytest.approx(row.b / row.a)
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.ratio < row.high < 1
    assert not row.higher_is_better
    assert bits.ratio is None
    assert (bits.difference, bits.low, bits.high) == pytest.approx(
        tuple(math.log2(number) for number in (row.ratio, row.low, row.high))
    )
    made_up = rows["piqa", "made_up"]
    assert (made_up.a, made_up.b, made_up.difference, made_up.p, made_up.low) == (1, 2, 1, None, None)

    family = [row for row in found.rows if row.p_holm is not None]
    assert family == [row for row in found.rows if row.primary]
    assert [row.p_holm for row in family] == pytest.approx(holm([row.p or 0 for row in family]))
    assert found.notes[-1] == CAVEAT
    assert "Holm's p is adjusted for 3 tasks" in found.notes[-2]


def test_order_and_limit_only_change_the_overlap() -> None:
    a, b = task("piqa", 1), task("piqa", 2)
    whole = compare(results(1, a), results(2, b))
    shuffled = replace(b, samples=tuple(b.samples[number] for number in np.random.default_rng(0).permutation(97)))
    assert compare(results(1, a), results(2, shuffled)) == whole
    limited = compare(results(1, a), results(2, replace(b, samples=b.samples[:40])))
    assert [row.items for row in limited.rows] == [40] * 4  # what is no mean over items can't be had over fewer
    assert "piqa: 40 items are in both, 57 only in A, 0 only in B." in limited.notes
    assert limited.rows[0].a == pytest.approx(np.mean([sample.scores["acc"] for sample in a.samples[:40]]))


def test_equal_items_are_paired_once_each() -> None:
    a, b = (
        replace(each, samples=tuple(replace(sample, hash="same") for sample in each.samples))
        for each in (task("piqa", 1), task("piqa", 2))
    )
    assert (
        compare(results(1, a), results(2, b)).rows
        == compare(results(1, task("piqa", 1)), results(2, task("piqa", 2))).rows
    )


def test_a_checkpoint_does_not_differ_from_itself() -> None:
    found = compare(suite(1), suite(1))
    assert {(row.difference, row.p) for row in found.rows if row.p is not None} == {(0, 1)}
    assert (found.a, found.b) == ("model1 (A)", "model1 (B)")
    assert "A and B are the same checkpoint." in found.notes


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (task("piqa", 1), task("hellaswag", 2), "no task is in both results: piqa in the one, hellaswag in the other"),
        (
            task("piqa", 1),
            task("piqa", 2, context_length=512),
            "piqa can't be compared: its context_length is 1024 in A and 512 in B: "
            "evaluate both with the same evaluation.context_length",
        ),
        (
            task("piqa", 1),
            task("piqa", 2, num_fewshot=5),
            "piqa can't be compared: its num_fewshot is 0 in A and 5 in B",
        ),
        (task("piqa", 1), task("piqa", 2, version="2.0"), "its version is 1.0 in A and 2.0 in B: evaluate both with"),
        (
            task("piqa", 1),
            replace(task("hellaswag", 2), task="piqa"),
            r"piqa: the results have no item in common \(97 and 97 others\)",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused(a: TaskResult, b: TaskResult, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        compare(results(1, a), results(2, b))
    assert "\n" not in str(refused.value)


def test_other_examples_and_other_weights_are_refused() -> None:
    a, b = results(1, task("piqa", 1, num_fewshot=5)), results(2, task("piqa", 2, num_fewshot=5))
    compare(a, b)
    other = replace(b, protocol=b.protocol | {"seeds": {"fewshot": 7}})
    with pytest.raises(ConfigError, match="drawn with seed 1234 in A and 7 in B"):
        compare(a, other)
    compare(results(1, task("piqa", 1)), replace(results(2, task("piqa", 2)), protocol=other.protocol))
    b = task("wikitext", 2)
    scores = {"perplexity": (-5.0, 7.0), "bits_per_byte": (-5.0, 7.0)}
    b = replace(b, samples=(replace(b.samples[0], scores=scores), *b.samples[1:]))
    with pytest.raises(ConfigError, match="wikitext: perplexity weighs the same items differently"):
        compare(results(1, task("wikitext", 1)), results(2, b))
    b = replace(b, samples=(replace(b.samples[0], scores={}), *b.samples[1:]))
    with pytest.raises(ConfigError, match="wikitext: the results lack perplexity of some items"):
        compare(results(1, task("wikitext", 1)), results(2, b))


def test_what_differs_and_does_no_harm_is_said() -> None:
    a = results(1, task("piqa", 1), task("arc", 1))
    b = replace(results(2, task("piqa", 2)), protocol={"dtype": "bfloat16"}, versions={"lm-eval": "0.4.14"})
    notes = compare(a, b).notes
    assert notes == ("Only in A: arc.", "dtype is float32 in A and bfloat16 in B.",
                     "lm-eval is 0.4.13 in A and 0.4.14 in B.", CAVEAT)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"step": 20}, ("last (step 10)", "last (step 20)")),
        ({"path": "/other"}, ("last (/runs/1/best.ckpt)", "last (/other)")),
        ({"sha256": "abcdef0123"}, ("last (00000000)", "last (abcdef01)")),
        ({"path": None, "sha256": None, "step": None}, ("last (A)", "last (B)")),
    ],
)
def test_names_differ(changes: dict[str, Any], names: tuple[str, str]) -> None:
    found = compare(suite(1, name="last"), suite(1, name="last", **changes))
    assert (found.a, found.b) == names


def test_the_tables_say_what_they_hold() -> None:
    found = compare(suite(1, name="run [a]"), suite(2))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(comparison_table(found))
    shown, written = console.export_text(), comparison_markdown(found)
    for text in (shown, written):
        assert "A: run [a], B: model2" in text
        assert "perplexity ↓" in text
        assert "× 0." in text
        assert "<0.001" in text
    assert CAVEAT in written
    assert "not two recipes" in shown
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(found.rows)
    assert {line.count("|") for line in lines} == {10}
    tree = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert tree["a"] == "run [a]"
    assert tree["rows"][0]["p"] == found.rows[0].p
    one = compare(results(1, task("piqa", 1, n=1)), results(2, task("piqa", 2, n=1)))
    json.dumps(one.as_dict(), allow_nan=False)
    assert "nan" not in comparison_markdown(one)
