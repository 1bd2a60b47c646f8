"""Published results are complete and sourced, and are compared with ours in a table, Markdown and a picture."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from gptstar.evaluation.results import Metric, TaskResult, TaskResults
from gptstar.evaluation.tasks.config import SUITE
from gptstar.evaluation.tasks.panels import beside_published, score_panels
from gptstar.evaluation.tasks.published import published_rows
from gptstar.evaluation.tasks.tables import COLUMNS, task_markdown, task_table

PUBLISHED = published_rows()


def test_the_rows_are_those_of_the_original() -> None:
    """The source is the original's readme.md and traininglog.md, and for GPT-3's PIQA its paper."""
    expected: dict[
        str, tuple[Any, ...]
    ] = {  # LAMBADA acc and perplexity, WikiText, PIQA, HellaSwag, Winogrande; tokens
        "GPT-127*": (36.23, 28.60, 36.29, 63.17, 28.07, 51.46, 26),
        "GPT-303*": (43.39, 15.89, 28.57, 65.2, 29.8, 49.3, 26),
        "GPT-1B*": (52.65, 9.758, 23.052, 69.31, 33.36, 52.17, 26),
        "GPT-125M": (36.52, 30.0494, 37.863, 62.46, 28.57, None, 21),
        "GPT-354M": (48.22, 13.29, 28.177, 65.67, 32.36, 51.3, 21),
        "GPT-Neo 125M": (37.36, 30.266, 32.285, 63.06, 28.67, 50.43, 300),
        "GPT-Neo 350M": (47.27, 13.876, 22.5657, 65.07, 32.16, 51.14, 300),
        "GPT-3 125M": (42.7, 18.6, None, 64.6, 33.7, 52.0, 300),
        "GPT-3 350M": (54.3, 9.09, None, 70.2, 43.6, 52.1, 300),
    }
    assert [row.model for row in PUBLISHED.rows] == list(expected)
    for row in PUBLISHED.rows:
        *figures, tokens = expected[row.model]
        assert row.training_tokens == tokens * 10**9
        for (task, metric), figure in zip(COLUMNS, figures, strict=True):
            found = row.figure(task, metric)
            assert (found is None) == (figure is None)
            if found is not None:
                scale = 100 if metric == "acc" else 1
                assert math.isclose(found.value * scale, figure, rel_tol=1e-9), (row.model, task, metric)


def test_every_figure_has_a_source_and_says_what_it_measures() -> None:
    assert set(PUBLISHED.tasks) == set(SUITE)
    used = set()
    for row in PUBLISHED.rows:
        assert row.tokens_source in PUBLISHED.sources
        assert row.tokens_confirmed or row.tokens_note
        assert len({(each.task, each.metric) for each in row.figures}) == len(row.figures)
        used |= {*row.notes, *([row.tokens_note] if row.tokens_note else [])}
        for figure in row.figures:
            assert (figure.task, figure.metric) in COLUMNS
            assert figure.source in PUBLISHED.sources
            assert figure.notes or figure.measures is None, figure
            used |= set(figure.notes)
    assert used == set(PUBLISHED.notes)
    assert all("](https://" in link for link in PUBLISHED.sources.values())
    other = {(row.model, figure.task) for row in PUBLISHED.rows for figure in row.figures if figure.measures}
    assert {task for _, task in other} == {"wikitext", "piqa", "hellaswag"}
    assert {model for model, task in other if task != "wikitext"} == {"GPT-3 125M", "GPT-3 350M"}
    assert len([1 for _, task in other if task == "wikitext"]) == 7  # all of them


def metric(name: str, value: float, low: float, high: float, items: int, **more: Any) -> Metric:
    share = name.startswith("acc")
    kind = "mean" if share else "bits_per_byte" if name == "bits_per_byte" else "perplexity"
    return Metric(name, value, low, high, "Wilson" if share else "bootstrap-t", kind, share, items, **more)


def result(task: str, source: dict[str, Any], *metrics: Metric, length: int = 1024, shots: int = 0) -> TaskResult:
    return TaskResult(task, "1.0", source, length, shots, metrics, ())


@pytest.fixture
def ours() -> TaskResults:
    local = {"path": "items/x.jsonl", "sha256": "ab" * 32, "split": None, "stands_for": "test"}
    tasks = (
        result(
            "lambada_openai",
            {"dataset": "EleutherAI/lambada_openai", "split": "test", "revision": "0123456789abcdef"},
            metric("perplexity", 29.8, 28.1, 31.7, 5153),
            metric("acc", 0.3581, 0.345, 0.371, 5153),
        ),
        result(
            "wikitext",
            local | {"split": "validation"},
            metric("word_perplexity", 36.0, 34.0, 38.3, 60),
            metric("bits_per_byte", 0.96, 0.94, 0.98, 60),
            length=2048,
        ),
        result("piqa", local, metric("acc", 0.632, 0.61, 0.654, 1102), metric("acc_norm", 0.6201, 0.6, 0.642, 1102)),
        result(
            "hellaswag",
            local | {"split": "validation"},
            metric("acc", 0.2811, 0.272, 0.29, 10042),
            metric("acc_norm", 0.301, 0.292, 0.31, 10042),
            metric("acc", 0.2777, 0.267, 0.288, 9001, subset="clean"),
        ),
        result("winogrande", local | {"split": "validation"}, metric("acc", 0.512, 0.478, 0.546, 1267)),
    )
    checkpoint = {
        "name": "mine",
        "path": "runs/a|b",
        "sha256": "cd" * 32,
        "n_params": 127030272,
        "tokens": 26_738_688_000,
    }
    return TaskResults(checkpoint, {"dtype": "float32", "limit": None}, {"lm-eval": "0.4.13"}, tasks)


def printed(results: TaskResults, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(task_table(results))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_table_fits_a_terminal(ours: TaskResults) -> None:
    lines = printed(ours)
    assert all(len(line) <= 80 for line in lines)
    assert "LAMBADA" in lines[1]
    assert lines[1].split() == ["LAMBADA", "LAMBADA", "WikiText", "PIQA", "HellaSwag", "Winogrande"]
    assert lines[4].split() == ["mine", "26.7B", "35.81", "29.80", "36.00", "63.20", "28.11", "51.20"]
    assert lines[5].split() == ["34.5–37.1", "28.1–31.7", "34.0–38.3", "61.0–65.4", "27.2–29.0", "47.8–54.6"]
    assert lines[6].split() == ["…", "acc_norm", "62.01", "30.10"]
    assert lines[8].split() == ["…", "clean²", "27.77"]
    assert [line.split()[0] for line in lines[11:15]] == ["GPT-127*", "GPT-303*", "GPT-1B*", "GPT-125M⁵"]
    assert lines[11].split() == ["GPT-127*", "26B", "36.23", "28.60", "36.29³", "63.17", "28.07", "51.46"]
    assert lines[18].split() == ["GPT-3", "125M", "300B", "42.70⁸", "18.60⁸", "–", "64.60⁹·¹⁰", "33.70⁹", "52.00"]


def test_footnotes_say_what_differs(ours: TaskResults) -> None:
    notes = " ".join(printed(ours, width=500)[20:])
    assert "¹ differs from the published protocol: WikiText 60 of 62 items, validation split instead of test; " in notes
    assert (
        "; PIQA 1,102 of 1,838 items, the file does not say of which split ²" in notes
    )  # and nothing on the three that are whole
    assert "by token, not by word" in notes
    assert "nearest to our acc_norm" in notes


def test_a_limit_and_examples_are_said(ours: TaskResults) -> None:
    hellaswag = replace(ours.tasks[3], num_fewshot=5, metrics=(metric("acc", 0.3, 0.2, 0.4, 100),))
    few = replace(ours, tasks=(hellaswag,), protocol={"dtype": "bfloat16", "limit": 100})
    lines = printed(few, width=200)
    assert lines[0] == "mine, bfloat16, context 1,024, only the first 100 items of each task"
    assert any("HellaSwag 100 of 10,042 items, 5 examples before each item" in line for line in lines)


def test_tasks_that_were_never_published_on(ours: TaskResults) -> None:
    arc = result("arc_easy", {"dataset": "x", "split": "test"}, metric("acc", 0.4, 0.38, 0.42, 2376))
    lines = printed(replace(ours, tasks=(*ours.tasks, arc)))
    assert any(line.split() == ["arc_easy", "acc", "40.00", "38.0–42.0", "2,376"] for line in lines)
    alone = replace(ours, tasks=(arc,))
    assert not any("GPT-Neo" in line for line in printed(alone))
    assert "GPT-Neo" not in task_markdown(alone)
    (panel,) = score_panels([alone])
    assert (panel.title, panel.metric, panel.published) == ("arc_easy", "acc %", [])


def test_markdown_holds_every_figure_and_where_it_is_from(ours: TaskResults) -> None:
    text = task_markdown(ours)
    lines = text.splitlines()
    assert lines[0] == "# mine, float32, context 1,024 and 2,048"
    assert "- sha256: `" + "cd" * 32 + "`" in lines
    for line in lines:
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|") - 1
            assert cells in (8, 10), line
    figures = [line for line in lines if "| Wilson |" in line or "| bootstrap-t |" in line]
    assert len(figures) == sum(len(task.metrics) for task in ours.tasks)
    assert any("bits_per_byte | 0.96 | 0.94–0.98" in line and "(validation)" in line for line in figures)
    assert any("| piqa |" in line and "(for the test split), sha256 `abababababab…`" in line for line in figures)
    assert any("EleutherAI/lambada_openai (test) at 0123456789ab" in line for line in figures)
    assert all(link in text for link in PUBLISHED.sources.values())


def test_figures_without_an_interval_and_huge_ones_are_shown(ours: TaskResults) -> None:
    lambada = ours.tasks[0]
    huge = replace(lambada.metrics[0], value=7.3e8, low=None, high=None)
    results = replace(ours, tasks=(replace(lambada, metrics=(huge, lambada.metrics[1])),))
    assert any("7.30e+08" in line for line in printed(results))
    perplexity = score_panels([results])[1]
    assert (perplexity.metric, perplexity.is_logarithmic) == ("ppl", True)
    assert math.isnan(perplexity.ours[0].low)


def test_there_is_a_panel_for_each_metric_with_the_published_rows(ours: TaskResults) -> None:
    panels = score_panels([ours])
    assert [(panel.title.partition(",")[0], panel.metric) for panel in panels] == [
        ("LAMBADA", "acc %"),
        ("LAMBADA", "ppl"),
        ("WikiText", "word ppl"),
        ("PIQA", "acc %"),
        ("HellaSwag", "acc %"),
        ("Winogrande", "acc %"),
    ]
    accuracy = panels[0]
    assert (accuracy.ours[0].model, accuracy.ours[0].value) == ("mine", pytest.approx(35.81))
    assert (accuracy.ours[0].low, accuracy.ours[0].high) == (pytest.approx(34.5), pytest.approx(37.1))
    assert [score.model for score in accuracy.published][:2] == ["GPT-127*", "GPT-303*"]
    assert [panel.chance for panel in panels] == [None, None, None, 50, 25, 50]
    assert [score.model for score in panels[3].ours] == ["mine", "… acc_norm"]
    assert sum(not score.is_same_metric for score in panels[3].published) == 2


def test_models_of_one_name_are_told_apart(ours: TaskResults) -> None:
    other = replace(ours, checkpoint=ours.checkpoint | {"path": "/other/best.ckpt", "sha256": "ef" * 32})
    panels = score_panels([ours, other])
    names = {score.model for score in panels[0].ours}
    assert len(names) == 2
    assert len(beside_published(panels)) == 2


def test_models_share_a_panel_and_are_set_beside_the_published(ours: TaskResults) -> None:
    other = replace(ours, checkpoint=ours.checkpoint | {"name": "other"}, tasks=ours.tasks[4:])
    panels = score_panels([ours, other])
    assert [score.model for score in panels[-1].ours] == ["mine", "other"]
    said = "8 published scores compared with other's, 0 are better, 8 are within its 95 % intervals, 0 are worse."
    assert beside_published(panels)[-1] == f"Of {said}"
