"""Comparisons of two evaluations: pairing of items, tables, notes and errors."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gptstar.errors import ConfigError
from gptstar.evaluation.compare import CAVEAT, Comparisons, by_checkpoint, compare_tasks, names_of
from gptstar.evaluation.comparison_tables import comparison_markdown, comparison_tree, print_comparisons
from gptstar.evaluation.results import Kind, Metric, Sample, TaskResult, TaskResults, read_tasks, to_json, write_tasks
from gptstar.evaluation.statistics.paired import holm, paired_accuracy


def task(name: str, seed: int, n: int = 97, **changes: Any) -> TaskResult:
    """Make a task's result by a model of this seed; the items are the same for every seed."""
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


def compare(a: TaskResults, b: TaskResults) -> Comparisons:
    return compare_tasks((a, b))


def test_results_are_paired_item_by_item(tmp_path: Path) -> None:
    a, b = (read_tasks(write_tasks(suite(seed), tmp_path / str(seed))) for seed in (1, 2))
    found = compare(a, b)
    assert found.names == ("model1", "model2")
    assert [(row.task, row.metric) for row in found.rows[0] if row.primary] == [
        ("winogrande", "acc"),
        ("wikitext", "perplexity"),
        ("piqa", "acc"),
    ]
    rows = {(row.task, row.metric): row for row in found.rows[0]}
    assert len(rows) == len(found.rows[0]) == 13
    assert all(row.items == 97 for row in found.rows[0])

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

    family = [row for row in found.rows[0] if row.p_holm is not None]
    assert family == [row for row in found.rows[0] if row.primary]
    assert [row.p_holm for row in family] == pytest.approx(holm([row.p or 0 for row in family]))
    assert found.notes[-1] == CAVEAT
    assert "Holm's p is adjusted for 3 tasks" in found.notes[-2]


def test_order_and_limit_only_change_the_overlap() -> None:
    a, b = task("piqa", 1), task("piqa", 2)
    whole = compare(results(1, a), results(2, b))
    shuffled = replace(b, samples=tuple(b.samples[number] for number in np.random.default_rng(0).permutation(97)))
    assert compare(results(1, a), results(2, shuffled)) == whole
    limited = compare(results(1, a), results(2, replace(b, samples=b.samples[:40])))
    assert [row.items for row in limited.rows[0]] == [40] * 4  # what is no mean over items can't be had over fewer
    assert "piqa: 40 items are in both, 57 only in A, 0 only in B." in limited.notes
    assert limited.rows[0][0].a == pytest.approx(np.mean([sample.scores["acc"] for sample in a.samples[:40]]))


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
    assert {(row.difference, row.p) for row in found.rows[0] if row.p is not None} == {(0, 1)}
    assert found.names == ("model1 (A)", "model1 (B)")
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
    with pytest.raises(ConfigError, match="its few-shot seed is 1234 in A and 7 in B"):
        compare(a, other)
    compare(results(1, task("piqa", 1)), replace(results(2, task("piqa", 2)), protocol=other.protocol))
    b = task("wikitext", 2)
    scores = {"perplexity": (-5.0, 7.0), "bits_per_byte": (-5.0, 7.0)}
    b = replace(b, samples=(replace(b.samples[0], scores=scores), *b.samples[1:]))
    with pytest.raises(ConfigError, match="wikitext: perplexity weights the same items differently"):
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
    assert found.names == names


def printed(found: Comparisons, width: int, **options: bool) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_comparisons(found, console, **options)
    return console.export_text()


def test_the_tables_say_what_they_hold() -> None:
    found = compare_tasks((suite(1, name="run [a]"), suite(2)))
    written = comparison_markdown(found)
    shown = printed(found, 140, all_metrics=True)
    for text in (shown, written):
        assert "A: run [a]" in text
        assert "B: model2" in text
        assert "× 0." in text
        assert "<0.001" in text
        assert "perplexity ↓" in text.replace("ppl", "perplexity")
    assert CAVEAT in written
    assert "not recipes" in shown
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(found.rows[0])
    assert {line.count("|") for line in lines} == {11}
    tree = json.loads(to_json(comparison_tree(found)))
    assert (tree["a"], tree["b"]) == ("run [a]", "model2")
    assert tree["rows"][0]["p"] == found.rows[0][0].p
    assert tree["rows"][0]["model"] == "model2"
    one = compare_tasks((results(1, task("piqa", 1, n=1)), results(2, task("piqa", 2, n=1))))
    assert "NaN" not in to_json(comparison_tree(one))
    assert "nan" not in comparison_markdown(one)


def test_a_row_a_task_fits_into_80_columns() -> None:
    long = "a_run_with_a_name_that_no_terminal_can_hold_" * 3 + "seed-{}/best"
    names = ("lambada_openai", "wikitext", "winogrande", "hellaswag")
    a, b = (results(n, *(task(name, n) for name in names), name=long.format(n)) for n in (1, 2))
    found = compare_tasks((a, b))
    shown = printed(found, 80).splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[0].startswith("A: a_run")
    assert shown[0].endswith("seed-1/best (the reference)")
    assert shown[1].endswith("seed-2/best")
    rows = [line for line in shown if line.startswith(names)]
    assert len(rows) == 4
    for line, row in zip(rows, (row for row in found.rows[0] if row.primary), strict=True):
        typed = line.replace("−", "-")
        assert (f"{row.difference:+.4f}" if row.ratio is None else f"× {row.ratio:.3f}") in typed
        assert (f"{row.low:+.4f} to {row.high:+.4f}" if row.ratio is None else f"{row.low:.3f} to") in typed
        assert line.rstrip().endswith(row.verdict)
    assert (
        len(printed(found, 80, all_metrics=True).splitlines()) == len(shown) + len(found.rows[0]) - 4 + 1
    )  # the line on brackets


@pytest.mark.parametrize(("ratio", "shown"), [(5.123e-5, "× 5.12e-05"), (4.5e6, "× 4.5e+06"), (0.9971, "× 0.997")])
def test_ratios_have_three_digits(ratio: float, shown: str) -> None:
    found = compare_tasks((results(1, task("wikitext", 1)), results(2, task("wikitext", 2))))
    row = replace(found.rows[0][0], ratio=ratio, low=ratio / 1.234, high=ratio * 1.234)
    lines = printed(replace(found, rows=((row,),)), 80).splitlines()
    (line,) = (line for line in lines if line.startswith("wikitext"))
    assert f"  {shown}  " in line
    assert line.rstrip().endswith(row.verdict)
    assert max(map(len, lines)) <= 80


def test_several_are_set_against_the_first_in_one_family() -> None:
    runs = [suite(seed) for seed in (1, 2, 3)]
    found = compare_tasks(runs)
    assert found.names == ("model1", "model2", "model3")
    pairs = [compare(runs[0], other) for other in runs[1:]]
    for rows, pair in zip(found.rows, pairs, strict=True):
        assert [replace(row, p_holm=None) for row in rows] == [replace(row, p_holm=None) for row in pair.rows[0]]
    family = [row for rows in found.rows for row in rows if row.primary]
    assert len(family) == 6
    assert [row.p_holm for row in family] == pytest.approx(holm([row.p or 0 for row in family]))
    assert "Holm's p is adjusted for 6 tests in all." in found.notes
    assert "C minus A" in printed(found, 80)
    limited = replace(runs[2], tasks=(runs[2].tasks[0],))
    assert "Only in A: wikitext, piqa." in compare_tasks([*runs[:2], limited]).notes
    with pytest.raises(ConfigError, match="its context_length is 1024 in A and 512 in C"):
        compare_tasks([*runs[:2], results(3, task("piqa", 3, context_length=512))])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"p_holm": 0.009, "difference": 0.1}, "better, significant"),
        ({"p_holm": 0.009, "difference": -0.1}, "worse, significant"),
        ({"p_holm": 0.03, "difference": 0.1}, "better, preliminary"),
        ({"p_holm": 0.03, "difference": 0.1, "higher_is_better": False}, "worse, preliminary"),
        ({"p_holm": 0.05, "difference": 0.1}, "not significant"),
        ({"p": 0.001, "p_holm": None, "difference": 0.1}, "better, significant"),
        ({"p": None, "p_holm": None}, "not tested"),
    ],
)
def test_the_verdict_is_by_the_adjusted_p(changes: dict[str, Any], verdict: str) -> None:
    row = compare(results(1, task("piqa", 1)), results(2, task("piqa", 2))).rows[0][0]
    assert replace(row, **changes).verdict == verdict


def test_names_of_several_differ() -> None:
    same = {"name": "best", "path": "/a", "step": 10}
    assert names_of([same, same | {"path": "/b"}, {"name": "other"}]) == ("best (/a)", "best (/b)", "other")
    assert names_of([same, same, {"name": None}]) == ("best (A)", "best (B)", "unnamed")


def test_evaluations_of_one_checkpoint_are_joined() -> None:
    first, other = results(1, task("piqa", 1), task("arc", 1)), results(2, task("piqa", 2))
    again = results(1, task("piqa", 3))
    joined = by_checkpoint([first, other, again])
    assert [each.checkpoint["name"] for each in joined] == ["model2", "model1"]
    assert joined[1].tasks == (again.tasks[0], first.tasks[1])
    five = replace(again, protocol={"dtype": "float32", "seeds": {"fewshot": 5}})
    assert len(by_checkpoint([first, five])) == 2  # of other examples, and the tests are paired by these
