"""Harness tasks on our model give the same scores, metrics and texts as the harness's own `hf` model."""

import io
import json
import math
import random
import resource
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import tokenizers
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from rich.console import Console

import gptstar
from gptstar.checkpoint.format import Checkpoint, write
from gptstar.checkpoint.huggingface.export import export
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError, DataError
from gptstar.evaluation.compare import compare_tasks
from gptstar.evaluation.harness import HarnessModel
from gptstar.evaluation.results import HEADER, TaskResult, TaskResults, read_tasks, to_json, write_tasks
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import load_tasks
from gptstar.evaluation.tasks.scoring import Scorer
from gptstar.evaluation.tasks.suite import evaluate_and_report, score
from gptstar.evaluation.tasks.tables import task_markdown, task_table
from gptstar.evaluation.tasks.team import Team, no_progress
from gptstar.evaluation.tasks.worker import Prompt, Worker
from gptstar.model import GPT, GPTConfig
from support.text import QUIET, sentences, write_tasks_files

GPT_STAR = {"n_layers": 2, "d_model": 60, "n_heads": 6}
GPT_2 = GPT_STAR | {"residual": "sequential", "positions": "learned", "n_ctx": 64, "gelu": "tanh"}
WHO = {"name": "made-up", "sha256": "0" * 64}


def build(n_vocab: int, **kind: Any) -> GPT:
    """Build a model with random weights, large enough that some tokens are far likelier than others."""
    torch.manual_seed(7)
    model = GPT(GPTConfig(n_vocab=n_vocab, **(GPT_STAR | kind))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return Tokenizer.train(sentences(60, 80, seed=1), 300)


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def hf(tmp_path_factory: pytest.TempPathFactory, transformers_offline: None) -> Callable[..., Any]:
    """Load an exported folder as the harness's own model."""
    from lm_eval.models.huggingface import HFLM

    def exported(model: GPT, bpe: Tokenizer, length: int) -> Any:
        folder = tmp_path_factory.mktemp("hf") / "exported"
        export(Checkpoint(model.config, model.state_dict(), bpe.json_text), folder, context_length=length)
        return HFLM(
            pretrained=str(folder), trust_remote_code=True, dtype="float32", device="cpu", batch_size=5,
            max_length=length,
        )  # fmt: skip

    return exported


def ours(model: GPT, bpe: Tokenizer, length: int) -> HarnessModel:
    return HarnessModel(Team(Worker(Scorer(model), bpe)), bpe, lambda _: no_progress, length)


@pytest.mark.parametrize(
    ("until", "text"),
    [(("<|end|>",), "the cat"), (("<|end|>on", "mat"), "the cat\non the "), (("\n<|other|>",), "the cat\non the mat")],
)
def test_a_special_token_in_until_ends_a_text(bpe, until, text, monkeypatch):
    chat = tokenizers.Tokenizer.from_str(bpe.json_text)
    chat.add_special_tokens(["<|end|>", "<|other|>"])
    written = chat.encode("the cat<|end|><|other|>\non the mat").ids
    chat = Tokenizer(chat.to_str())

    def decode(model, prompts, n_new, *, ended, **_):
        return [written[: next((n for n in range(1, len(written)) if ended(written[:n])), len(written))]]

    monkeypatch.setattr("gptstar.evaluation.tasks.worker.decode", decode)
    worker = Worker(Scorer(build(chat.n_vocab)), chat)
    assert worker([Prompt((0,), 40, until)], 0, 1, lambda _: None) == {0: text}


def top_two_differ_by(model: GPT, bpe: Tokenizer, context: str, continuation: str) -> float:
    """Return the least gap between the logits of the two likeliest tokens over a continuation."""
    tokens = torch.from_numpy(bpe.encode([context + continuation])[0])[None]
    with torch.inference_mode():
        top = model(tokens).topk(2).values[0]
    return float((top[:, 0] - top[:, 1]).min())


def compare_with_hf(
    model: GPT, bpe: Tokenizer, hf: Callable[..., Any], task: str, data_dir: Path, *, limit: int | None, length: int
) -> dict[str, float]:
    """Assert equal scores and metrics, and return the largest difference."""
    found = {}
    for name, lm in (("ours", ours(model, bpe, length)), ("hf", hf(model, bpe, length))):
        (loaded,) = load_tasks([task], data_dir)
        loaded.set_config(key="num_fewshot", value=0)
        found[name] = evaluate(lm, {"tasks": {task: loaded}}, limit=limit, bootstrap_iters=0)
    for key, value in found["hf"]["results"][task].items():
        if isinstance(value, float):
            assert found["ours"]["results"][task][key] == pytest.approx(value, rel=1e-5), key
    worst, flipped, n_items = 0.0, 0, 0
    for one, other in zip(found["ours"]["samples"][task], found["hf"]["samples"][task], strict=True):
        for mine, theirs, arguments in zip(one["resps"], other["resps"], one["arguments"], strict=True):
            if task == "wikitext":
                n_scored = len(bpe.encode([arguments[0]])[0])
                difference = mine[0] - theirs[0]
            else:
                context, continuation = arguments
                n_scored = len(bpe.encode([context + continuation])[0]) - len(bpe.encode([context.rstrip()])[0])
                difference = mine[0][0] - theirs[0][0]
                if mine[0][1] != theirs[0][1]:
                    flipped += 1
                    assert top_two_differ_by(model, bpe, context, continuation) < 1e-4
            worst, n_items = max(worst, abs(difference) / n_scored), n_items + 1
    assert worst < 1e-5
    return {"items": n_items, "nats a token": worst, "flipped": flipped}


TASKS = ["lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande"]


@pytest.mark.parametrize("kind", [{}, GPT_2], ids=["gpt-star", "gpt-2"])
@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_the_hf_model(task, kind, bpe, task_files, hf):
    model = build(300, **kind)
    assert compare_with_hf(model, bpe, hf, task, task_files, limit=None, length=64)["items"] >= 5


@pytest.mark.parametrize(
    "task",
    ["piqa", *(pytest.param(each, marks=pytest.mark.slow) for each in ("lambada_openai", "winogrande", "wikitext"))],
)
def test_scores_on_real_items_are_those_of_the_hf_model(task, shared, hf):
    bpe = Tokenizer.from_file(shared / "tokenizer/gpt2.json")
    limit, length = (2, 512) if task == "wikitext" else (12, 1024)
    compare_with_hf(build(bpe.n_vocab), bpe, hf, task, shared / "benchmarks", limit=limit, length=length)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lambada_openai", "piqa", "winogrande", "wikitext"])
def test_scores_on_all_real_items_are_those_of_the_hf_model(task, shared, hf, capsys):
    bpe = Tokenizer.from_file(shared / "tokenizer/gpt2.json")
    length = 2048 if task == "wikitext" else 1024
    found = compare_with_hf(build(bpe.n_vocab), bpe, hf, task, shared / "benchmarks", limit=None, length=length)
    with capsys.disabled():
        print(f"\n{task}: {found}")


@pytest.mark.parametrize("kind", [{}, GPT_2], ids=["gpt-star", "gpt-2"])
def test_texts_are_those_of_the_hf_model(kind, bpe, hf):
    model, draw = build(300, **kind), random.Random(3)
    settings = [{"until": [" "], "max_gen_toks": 9}, {"until": ["a", "\n\n"], "max_gen_toks": 17}, {"max_gen_toks": 5}]
    contexts = [" ".join(sentences(1, draw.randrange(1, 20), seed)) for seed in range(12)]
    requests = [
        Instance("generate_until", {}, (context, dict(draw.choice(settings))), number)
        for number, context in enumerate(contexts)
    ]
    found = ours(model, bpe, 48).generate_until(requests)
    assert found == hf(model, bpe, 48).generate_until(requests)
    assert len(set(found)) > 3


def requests(*settings: dict[str, Any]) -> list[Instance]:
    return [Instance("generate_until", {}, ("the cat", each), number) for number, each in enumerate(settings)]


def test_settings_of_greedy_texts_are_applied(bpe, hf):
    model, plain = build(300), {"max_gen_toks": 16, "do_sample": False}
    asked = requests(plain, plain | {"repetition_penalty": 1.3}, plain | {"num_beams": 1, "length_penalty": 1.0})
    found = ours(model, bpe, 128).generate_until(asked)
    reference = hf(model, bpe, 128)
    assert found == [reference.generate_until([each])[0] for each in asked]
    assert found[0] == found[2] != found[1]


def test_settings_of_drawn_texts_are_applied(bpe):
    plain = {"max_gen_toks": 16, "do_sample": True}
    drawn = requests(plain, plain | {"top_p": 1e-6}, plain | {"top_k": 1}, {"max_gen_toks": 16}, plain | {"min_p": 0})
    found = ours(build(300), bpe, 128).generate_until(drawn)
    assert found[1] == found[2] == found[3] != found[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 4}, "sets num_beams=4, which is not supported"),
        ({"do_sample": False, "no_repeat_ngram_size": 2}, "sets no_repeat_ngram_size=2"),
        ({"length_penalty": 0.5, "num_beams": 2}, "sets length_penalty=0.5, num_beams=2"),
        ({"do_sample": True, "min_p": 0.1}, "sets min_p=0.1"),
        ({"min_new_tokens": 3}, "sets min_new_tokens=3"),
        ({"suppress_tokens": [1]}, "sets suppress_tokens="),
        ({"repetition_penalty": "much"}, "repetition_penalty='much' is not a number"),
        ({"repetition_penalty": math.nan}, "repetition_penalty=nan is not between"),
        ({"max_gen_toks": -1}, "max_gen_toks=-1"),
        ({"max_gen_toks": "many"}, "has invalid generation_kwargs"),
        ({"until": [3]}, r"until=\[3\]"),
        ({"do_sample": "no"}, "do_sample=no"),
    ],
)
def test_settings_that_are_not_offered_are_refused_by_name(settings, said, bpe):
    with pytest.raises(ConfigError, match=said):
        ours(build(300), bpe, 512).generate_until(requests(settings))


def suite(model: GPT, bpe: Tokenizer | None, data_dir: Path, **choices: Any) -> TaskResults:
    config = replace(TasksConfig(data_dir=data_dir, context_length=48), **choices)
    scored = score(model, bpe, config, checkpoint=WHO, console=QUIET)
    assert scored is not None
    return scored.results


def log_likelihoods(results: TaskResults) -> list[float]:
    return [each for task in results.tasks for sample in task.samples for each in sample.log_likelihoods]


def test_results_are_written_and_read(bpe, task_files, tmp_path):
    results = suite(build(300), bpe, task_files)
    assert [task.task for task in results.tasks] == TASKS
    by_name = {task.task: {metric.name: metric for metric in task.metrics} for task in results.tasks}
    assert list(by_name["lambada_openai"]) == ["perplexity", "acc"]
    assert list(by_name["wikitext"]) == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    for metrics in by_name.values():
        for metric in metrics.values():
            assert metric.low is not None
            assert metric.low <= metric.value <= metric.high
    bits, perplexity = by_name["wikitext"]["bits_per_byte"], by_name["wikitext"]["byte_perplexity"]
    assert bits.value == pytest.approx(math.log2(perplexity.value))
    assert all(len(task.samples) == (5 if task.task == "wikitext" else 23) for task in results.tasks)
    write_tasks(results, tmp_path)
    assert read_tasks(tmp_path) == results


def test_nothing_is_disturbed(bpe, task_files):
    model = build(300).train()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    suite(model, bpe, task_files, tasks=("piqa",), limit=3, num_fewshot=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1][1].tolist()
    assert random.getstate() == before[2]
    assert model.training


def test_a_cache_goes_on_where_it_was_and_is_of_one_checkpoint_length_and_type(bpe, task_files, tmp_path, monkeypatch):
    model, scored = build(300), []
    score = Scorer.score

    def counting(self: Scorer, requests: Sequence[Any], batch: Sequence[Any]) -> Any:
        scored.extend(requests)
        return score(self, requests, batch)

    monkeypatch.setattr(Scorer, "score", counting)
    choices = {"tasks": ("piqa",), "cache": tmp_path / "cache"}
    first = suite(model, bpe, task_files, limit=9, **choices)
    n_first = len(scored)
    assert n_first > 0
    assert log_likelihoods(suite(model, bpe, task_files, limit=9, **choices)) == log_likelihoods(first)
    assert len(scored) == n_first
    suite(model, bpe, task_files, limit=10, **choices)
    assert len(scored) == n_first + 2
    another = Tokenizer.train(sentences(60, 80, seed=99), 290)
    for tokenizer, other in ((bpe, {"context_length": 47}), (bpe, {"dtype": "bfloat16"}), (another, {})):
        scored.clear()
        suite(model, tokenizer, task_files, limit=9, **choices | other)
        assert scored, other
    files = sorted(path.name for path in (tmp_path / "cache").glob("*.db"))
    assert len(files) == 4
    assert all(file.startswith("0" * 32) for file in files)
    with sqlite3.connect(tmp_path / "cache" / files[0]) as database:
        assert database.execute("select count(*) from unnamed").fetchone()[0] >= 18
    for file in files:
        (tmp_path / "cache" / file).write_text("garbage " * 99)
    with pytest.raises(ConfigError, match=r"\.db is not a cache of scores, or damaged \(.*\): remove it"):
        suite(model, bpe, task_files, limit=9, **choices)


def test_items_that_training_never_saw_are_scored_by_themselves(bpe, task_files, tmp_path):
    overlap = tmp_path / "overlap.json"
    known = {"piqa": {"items": 23, "too_short": [0, 5], "dirty": [3, 4, 9]}}
    overlap.write_text(json.dumps({"shards": "x", "benchmarks": known}))
    (result,) = suite(build(300), bpe, task_files, tasks=("piqa",), overlap=overlap).tasks
    clean = {metric.name: metric for metric in result.metrics if metric.subset == "clean"}
    kept = [sample.scores["acc"] for sample in result.samples if sample.item not in {0, 5, 3, 4, 9}]
    assert clean["acc"].items == len(kept) == 18
    assert clean["acc"].value == pytest.approx(np.mean(kept))
    known["piqa"]["items"] = 22
    overlap.write_text(json.dumps({"benchmarks": known}))
    with pytest.raises(ConfigError, match=r"covers 22 items of piqa, but it has 23 items here"):
        suite(build(300), bpe, task_files, tasks=("piqa",), overlap=overlap)
    overlap.write_text("[]")
    with pytest.raises(ConfigError, match="was not written by `gptstar data overlap --json`"):
        suite(build(300), bpe, task_files, tasks=("piqa",), overlap=overlap)


def test_copies_of_an_item_are_one_cluster(bpe, tmp_path):
    rows = [json.loads(line) for line in (write_tasks_files(tmp_path) / "piqa.jsonl").read_text().splitlines()]
    file, model = tmp_path / "piqa.jsonl", build(300)

    def piqa(items: Sequence[dict[str, Any]]) -> TaskResult:
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
        return suite(model, bpe, tmp_path, tasks=("piqa",)).tasks[0]

    relabelled = rows[0] | {"label": 1 - rows[0]["label"]}
    one, several, many = piqa(rows[:1]), piqa(rows[:1] * 6), piqa([*rows[:8], *rows[:2], relabelled])
    assert [(metric.value, metric.low) for metric in several.metrics] == [(each.value, None) for each in one.metrics]
    assert (one.n_copies, several.n_copies, many.n_copies) == (0, 5, 3)
    assert [sample.cluster for sample in many.samples] == [*range(8), 0, 1, 0]
    results = TaskResults(WHO, {}, {}, (several,))
    note = "piqa: 5 of 6 items are copies of earlier ones; an item and its copies are one cluster."
    assert note in task_markdown(results).splitlines()
    shown = io.StringIO()
    Console(width=200, file=shown).print(task_table(results))
    assert note in shown.getvalue()
    row = compare_tasks([results, results]).rows[0][0]
    assert row.p is None
    tree = json.loads(to_json(HEADER | asdict(results)))
    del tree["tasks"][0]["n_copies"]
    (tmp_path / "results.json").write_text(json.dumps(tree))
    assert read_tasks(tmp_path).tasks[0] == replace(several, n_copies=0)


def test_refusals_name_the_cure(bpe, task_files):
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*give tokenizer=FILE"):
        suite(build(300), None, task_files)
    with pytest.raises(DataError, match="the tokenizer has 300 tokens, the model 299"):
        suite(build(299), bpe, task_files)
    with pytest.raises(ConfigError, match="too short"):
        suite(build(300), bpe, task_files, tasks=("hellaswag",), context_length=5)
    with pytest.raises(ConfigError, match=r"exceeds the model's n_ctx=64"):
        suite(build(300, **GPT_2), bpe, task_files, tasks=("piqa",), context_length=65)
    config = TasksConfig(tasks=("piqa",), data_dir=task_files, cache=task_files / "c")
    with pytest.raises(ConfigError, match="needs a checkpoint that is a file"):
        score(build(300), bpe, config, checkpoint={"name": "x"}, console=QUIET)
    with pytest.raises(ConfigError, match="leaves no room"):
        ours(build(300), bpe, 48).generate_until([Instance("generate_until", {}, ("x", {"max_gen_toks": 48}), 0)])


def test_what_loses_its_beginning_is_counted(bpe, task_files):
    def n_cut(length: int) -> int:
        return suite(build(300), bpe, task_files, tasks=("piqa",), context_length=length).tasks[0].n_cut

    requests = [bpe.encode([f"Question: {row['goal']}\nAnswer: {row[choice]}"])[0] for row in map(json.loads, (
        task_files / "piqa.jsonl").read_text().splitlines()) for choice in ("sol1", "sol2")]  # fmt: skip
    assert n_cut(40) == sum(len(tokens) > 41 for tokens in requests) > n_cut(999) == 0


@pytest.mark.slow
def test_a_checkpoint_evaluates_within_the_harness(bpe, task_files, tmp_path):
    model, task = build(300), "piqa"
    write(tmp_path / "a.ckpt", Checkpoint(model.config, model.state_dict(), bpe.json_text))
    found = lm_eval.simple_evaluate(
        gptstar.lm(tmp_path / "a.ckpt", context_length=48, device="cpu"),
        tasks=load_tasks([task], task_files),
        num_fewshot=0,
        limit=9,
    )
    expected = suite(model, bpe, task_files, tasks=(task,), limit=9).tasks[0]
    accuracy = next(metric for metric in expected.metrics if metric.name == "acc")
    assert found["results"][task]["acc,none"] == pytest.approx(accuracy.value)
    assert found["n-samples"][task]["effective"] == 9


def test_what_the_harness_can_not_evaluate_is_refused(bpe, tmp_path):
    model = build(300, **GPT_2)
    write(tmp_path / "mute.ckpt", Checkpoint(model.config, model.state_dict()))
    with pytest.raises(CheckpointError, match=r"mute\.ckpt holds no tokenizer"):
        gptstar.lm(tmp_path / "mute.ckpt")
    write(tmp_path / "a.ckpt", Checkpoint(model.config, model.state_dict(), bpe.json_text))
    assert gptstar.lm(tmp_path / "a.ckpt", device="cpu").context_length == 64
    with pytest.raises(ConfigError, match="exceeds the model's n_ctx=64"):
        gptstar.lm(tmp_path / "a.ckpt", context_length=65)


def test_a_diverged_model_is_one_line(bpe, task_files):
    model = build(300)
    with torch.no_grad():
        model.norm.weight.mul_(1e6)
    with pytest.raises(CheckpointError, match="wikitext: the perplexity exceeds a float's range"):
        suite(model, bpe, task_files, tasks=("wikitext",))


def test_a_full_disk_is_one_line_and_the_table_is_shown(bpe, task_files, tmp_path, capsys):
    model = build(300)
    checkpoint = Checkpoint(model.config, model.state_dict(), bpe.json_text)
    config = TasksConfig(tasks=("piqa",), data_dir=task_files)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # Python ignores the signal, and writing fails
    try:
        with pytest.raises(ConfigError, match=r"can't write all results into .* \(File too large\)"):
            evaluate_and_report(WHO, checkpoint, config, torch.device("cpu"), tmp_path / "out", Console())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "GPT-127*" in capsys.readouterr().out
    assert not list((tmp_path / "out").iterdir())


def test_learned_positions_cap_the_published_lengths():
    config = TasksConfig()
    assert [config.length_for(task, None) for task in ("piqa", "wikitext")] == [1024, 2048]
    assert [config.length_for(task, 1024) for task in ("piqa", "wikitext")] == [1024, 1024]
    assert replace(config, context_length=77).length_for("wikitext", None) == 77
