"""The harness's options have the same effect here as there, and missing parts of tasks give one-line errors."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.registry import get_model

import gptstar
from gptstar.errors import CheckpointError, ConfigError, DataError
from gptstar.evaluation.compare import compare_tasks
from gptstar.evaluation.harness import HarnessModel
from gptstar.evaluation.results import TaskResults
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import load
from gptstar.evaluation.tasks.suite import score
from gptstar.evaluation.tasks.tables import task_markdown, task_table
from support.harness import LENGTH, bpe, checkpoint, saved, wanted
from support.text import QUIET, write_tasks_files

WRITES = """
task: writes
dataset_path: writes
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""

MAKES = """
task: makes
test_split: test
custom_dataset: !function code.items
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: 0
doc_to_choice: [a, b]
metadata: {version: 1.0}
"""

CODE = """
import datasets

def items(**metadata):
    if "address" in metadata:
        import urllib.request
        urllib.request.urlopen(metadata["address"])
    return {"test": datasets.Dataset.from_list([{"text": metadata["word"]}] * 3)}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Write definitions of tasks, and items for those that don't generate them."""
    write_tasks_files(tmp_path / "tasks", n_items=7)
    (tmp_path / "tasks/writes.yaml").write_text(WRITES)
    rows = [{"text": f"the cat number {number}", "answer": "mat"} for number in range(5)]
    (tmp_path / "tasks/writes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks/makes.yaml").write_text(MAKES)
    (tmp_path / "tasks/code.py").write_text(CODE)
    return tmp_path / "tasks"


def options(tasks: Path, task: str, **choices: Any) -> TasksConfig:
    config = TasksConfig(tasks=(task,), include_path=tasks, data_dir=tasks, context_length=LENGTH)
    return replace(config, **choices)


def evaluated(config: TasksConfig, seed: int = 7) -> TaskResults:
    tokenizer = bpe()
    who = {"name": f"model{seed}", "sha256": f"{seed:064x}"}
    scored = score(checkpoint(tokenizer, seed).build(), tokenizer, config, checkpoint=who, console=QUIET)
    assert scored is not None
    return scored.results


def texts(config: TasksConfig) -> list[str]:
    tokenizer = bpe()
    scored = score(checkpoint(tokenizer).build(), tokenizer, config, checkpoint={"name": "a"}, console=QUIET)
    assert scored is not None
    return [entry["filtered_resps"][0] for entry in scored.output["samples"]["writes"]]


@pytest.mark.slow
def test_gen_kwargs_are_those_of_the_harness(tasks: Path, tmp_path: Path) -> None:
    path = saved(checkpoint(bpe()), tmp_path / "a.ckpt")
    for given in ({}, {"max_gen_toks": 9}, {"max_gen_toks": 9, "until": ["a"]}):
        found = lm_eval.simple_evaluate(
            gptstar.lm(path, context_length=LENGTH, device="cpu"),
            **wanted(load(["writes"], tasks, include_path=tasks)),
            gen_kwargs=dict(given),
        )
        theirs = [entry["filtered_resps"][0] for entry in found["samples"]["writes"]]
        assert texts(options(tasks, "writes", gen_kwargs=given)) == theirs
    assert texts(options(tasks, "writes")) != texts(options(tasks, "writes", gen_kwargs={"max_gen_toks": 9}))


def test_gen_kwargs_are_checked_recorded_and_compared(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="writes sets num_beams=4, which is not supported"):
        evaluated(options(tasks, "writes", gen_kwargs={"num_beams": 4}))
    plain, longer = (
        evaluated(options(tasks, "writes", gen_kwargs=given, cache=tmp_path / "cache"))
        for given in ({}, {"max_gen_toks": 9})
    )
    assert (plain.tasks[0].gen_kwargs, longer.tasks[0].gen_kwargs) == (None, {"max_gen_toks": 9})
    assert "gen_kwargs" not in plain.protocol
    assert longer.protocol["gen_kwargs"] == {"max_gen_toks": 9}
    with pytest.raises(ConfigError, match=r"writes can't be compared: its gen_kwargs is None in A and .*max_gen_toks"):
        compare_tasks((plain, longer))
    piqa = [evaluated(options(tasks, "piqa", gen_kwargs=given)) for given in ({}, {"max_gen_toks": 9})]
    assert compare_tasks(piqa).rows[0]


def test_a_cache_does_not_mix_ways_of_writing(tasks: Path, tmp_path: Path) -> None:
    longer = {"gen_kwargs": {"max_gen_toks": 9}}
    kept = replace(options(tasks, "writes"), cache=tmp_path / "cache")
    who = {"name": "a", "sha256": "0" * 64}

    def written(config: TasksConfig) -> list[str]:
        tokenizer = bpe()
        scored = score(checkpoint(tokenizer).build(), tokenizer, config, checkpoint=who, console=QUIET)
        assert scored is not None
        return [entry["filtered_resps"][0] for entry in scored.output["samples"]["writes"]]

    assert written(kept) == texts(options(tasks, "writes"))
    assert written(replace(kept, **longer)) == texts(options(tasks, "writes", **longer))


def test_a_task_that_says_no_examples_keeps_none(tasks: Path) -> None:
    (tasks / "zero.yaml").write_text(WRITES.replace("task: writes", "task: zero\nnum_fewshot: 0"))
    (tasks / "zero.jsonl").write_bytes((tasks / "writes.jsonl").read_bytes())
    assert evaluated(options(tasks, "zero", num_fewshot=2)).tasks[0].num_fewshot == 0
    assert evaluated(options(tasks, "writes", num_fewshot=2)).tasks[0].num_fewshot == 2


def test_predict_only_keeps_answers_and_computes_nothing(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("writes", "piqa"):
        results = evaluated(options(tasks, task, predict_only=True))
        assert results.tasks[0].metrics == ()
        assert not any(sample.scores for sample in results.tasks[0].samples)
        assert results.protocol["predict_only"] is True
        assert "predict_only" in task_markdown(results)
        assert task_table(results)
        with pytest.raises(ConfigError, match="have no metric in common"):
            compare_tasks((results, results))
    assert len(texts(options(tasks, "writes", predict_only=True))) == 5


def test_metadata_reaches_the_code_of_tasks(tasks: Path) -> None:
    results = evaluated(options(tasks, "makes", data_dir=None, metadata={"word": "mat"}))
    assert results.protocol["metadata"] == {"word": "mat"}
    assert len(results.tasks[0].samples) == 3
    other = evaluated(options(tasks, "makes", data_dir=None, metadata={"word": "mat", "more": 1}))
    assert any("evaluation.metadata is {'word': 'mat'} in A" in note for note in compare_tasks((results, other)).notes)
    another = evaluated(options(tasks, "makes", data_dir=None, metadata={"word": "cat"}))
    with pytest.raises(ConfigError, match="no item in common"):
        compare_tasks((results, another))


@pytest.mark.usefixtures("no_network")
def test_code_that_lacks_something_says_what(tasks: Path) -> None:
    def refused(task: str, **metadata: Any) -> str:
        began = time.monotonic()
        with pytest.raises((ConfigError, DataError)) as found:
            load([task], None, include_path=tasks, metadata=metadata)
        assert time.monotonic() - began < 60
        assert "\n" not in str(found.value)
        return str(found.value)

    said = refused("makes")
    assert "makes generates its items by its own code, which failed (KeyError: 'word')" in said
    assert "+evaluation.metadata.KEY=VALUE" in said
    assert "make sure that it can reach what it downloads" in refused("makes", address="http://127.0.0.1:9/x", word="x")
    (tasks / "code.py").write_text("import a_package_that_is_not_here\n")
    said = refused("makes")
    assert "the code of makes can't be imported here" in said
    assert "pip install 'lm_eval[tasks]' or a_package_that_is_not_here" in said


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_ruler_says_what_to_fetch(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for data_dir in (None, tmp_path / "none"):
        with pytest.raises((ConfigError, DataError)) as found:
            load(["niah_single_1"], data_dir)
        said = str(found.value)
        assert "\n" not in said
        if data_dir is None:
            for word in ("lm_eval[ruler]", "punkt_tab", "+evaluation.metadata.tokenizer=FOLDER"):
                assert word in said


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"fewshot_as_multiturn": True}, "fewshot_as_multiturn=true needs a chat template"),
        ({"predict_only": True, "every_n_steps": 3}, "predict_only=true computes no metrics"),
    ],
)
def test_options_that_can_not_hold_are_refused(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TasksConfig(**choices)


def test_a_checkpoint_is_loaded_from_a_string(tmp_path: Path) -> None:
    path = saved(checkpoint(bpe()), tmp_path / "a.ckpt")
    assert get_model("gptstar") is HarnessModel
    made = HarnessModel.create_from_arg_string(f"path={path},dtype=bfloat16,context_length=32", {"batch_size": 1})
    assert made.context_length == made.max_length == 32
    n_params = checkpoint(bpe()).model.n_params
    assert made.get_model_info() == {"model_num_parameters": n_params, "model_dtype": "bfloat16"}
    assert HarnessModel.create_from_arg_obj({"path": str(path)}, {"device": "cpu"}).context_length == 1024
    for arguments, said in (
        ("dtype=float32", "model_args lacks path: give path=CHECKPOINT"),
        (f"path={path},dtyp=float32", "model_args: dtyp is not one of path, context_length, device, dtype"),
        (f"path={path},dtype=int4", "dtype=int4 is not one of float32, bfloat16, float16"),
        (f"path={path},device=abacus", "device=abacus: "),
    ):
        with pytest.raises(ConfigError, match=said):
            HarnessModel.create_from_arg_string(arguments)
    with pytest.raises(CheckpointError, match="nowhere"):
        HarnessModel.create_from_arg_string("path=nowhere")


def test_simple_evaluate_finds_it_by_name(tasks: Path, tmp_path: Path) -> None:
    path = saved(checkpoint(bpe()), tmp_path / "a.ckpt")
    found = lm_eval.simple_evaluate(
        "gptstar",
        model_args=f"path={path},context_length={LENGTH}",
        **wanted(load(["piqa"], tasks)),
        device="cpu",
        bootstrap_iters=0,
    )
    (task,) = evaluated(options(tasks, "piqa")).tasks
    assert found["results"]["piqa"]["acc,none"] == pytest.approx(task.metrics[0].value)
    assert found["config"]["model"] == "gptstar"


@pytest.mark.slow
def test_the_command_of_the_harness_finds_it(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gptstar.cli import main

    path = saved(checkpoint(bpe()), tmp_path / "a.ckpt")
    (tasks / "code.py").write_text(CODE)
    words = ["--model", "gptstar", "--model_args", f"path={path},context_length={LENGTH}", "--tasks", "makes"]
    more = ["--include_path", str(tasks), "--metadata", '{"word": "mat"}', "--device", "cpu", "--limit", "2"]
    main(["lm_eval", *words, *more, "--output_path", str(tmp_path / "out"), "--log_samples"])
    assert "|makes|" in capsys.readouterr().out.replace(" ", "")
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["model"] == "gptstar"
