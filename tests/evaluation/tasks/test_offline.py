"""Benchmark items from local files: the harness's own preprocessing, without a network, and every refusal."""

import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks._yaml_loader import load_yaml

from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.tasks.config import SUITE
from gptstar.evaluation.tasks.hub import reachable
from gptstar.evaluation.tasks.manifest import Entry, write_manifest
from gptstar.evaluation.tasks.offline import clusters_of, item_hash, load_tasks, source_of
from gptstar.files import file_sha256

pytestmark = pytest.mark.usefixtures("no_network")

ITEMS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [{"text": "He asked the smith for a horse, and got a  horse"}, {"text": "a b\nc d"}],
    "wikitext": [{"page": ' = Lobster = \n \n It is @-@ 1 @,@ 000 " big " , they say . \n'}, {"page": "b c"}],
    "piqa": [
        {"goal": "dresser", "sol1": "a pin", "sol2": "wood", "label": 1},
        {"goal": "How?", "sol1": "so", "sol2": "that way", "label": 0},
        {"goal": "Why?", "sol1": "x", "sol2": "y", "label": 1},
    ],
    "hellaswag": [
        {
            "ind": number,
            "activity_label": "Baking",
            "ctx_a": "A man [title] bakes.",
            "ctx_b": "he",
            "ctx": "A man bakes. he",
            "endings": ["eats", "[substeps] sleeps", "runs", "sings"],
            "source_id": f"video~{number // 2}",
            "split": "val",
            "split_type": "indomain",
            "label": str(number),
        }
        for number in range(3)
    ],
    "winogrande": [
        {"sentence": "Ann taught Sue as _ knew more.", "option1": "Ann", "option2": "Sue", "answer": "1"},
        {"sentence": "Ann taught Sue as _ knew less.", "option1": "Ann", "option2": "Sue", "answer": "2"},
        {"sentence": "The cat saw the dog, so _ hid.", "option1": "cat", "option2": "dog", "answer": "2"},
    ],
}
OWN_FILES = {
    "lambada_openai": "lambada/lambada_openai.yaml",
    "wikitext": "wikitext/wikitext.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file for each task of the suite."""
    for task, rows in ITEMS.items():
        write(tmp_path / "items" / f"{task}.jsonl", rows)
    return tmp_path / "items"


def by_the_harness(task: str, file: Path, cache: Path) -> ConfigurableTask:
    """The task as the harness itself builds it, but with the file read by `datasets` as its one split."""
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / OWN_FILES[task])
    split = config.get("test_split") or config["validation_split"]
    config.pop("tag", None)
    config |= {"dataset_path": "json", "dataset_name": None, "training_split": None}
    config |= {"dataset_kwargs": {"data_files": {split: str(file)}, "cache_dir": str(cache)}}
    if split == "test":
        config["validation_split"] = None
    return ConfigurableTask(config=config)


def asked(task: ConfigurableTask, limit: int | None = None) -> list[Any]:
    """Requests, with targets."""
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [(each.request_type, each.arguments, task.doc_to_target(each.doc)) for each in task.instances]


@pytest.mark.parametrize("task", SUITE)
def test_items_requests_and_targets_are_the_harness_own(folder: Path, tmp_path: Path, task: str) -> None:
    (ours,) = load_tasks([task], folder)
    theirs = by_the_harness(task, folder / f"{task}.jsonl", tmp_path)
    assert list(ours.eval_docs) == list(theirs.eval_docs)
    assert asked(ours) == asked(theirs)
    assert ours.VERSION == theirs.VERSION
    assert ours.aggregation() == theirs.aggregation()


@pytest.mark.parametrize("task", [task for task in SUITE if task != "hellaswag"])
def test_so_they_are_on_real_files(shared: Path, tmp_path: Path, task: str) -> None:
    (ours,) = load_tasks([task], shared / "benchmarks")
    theirs = by_the_harness(task, shared / "benchmarks" / f"{task}.jsonl", tmp_path)
    assert list(ours.eval_docs) == list(theirs.eval_docs)
    assert asked(ours, limit=101) == asked(theirs, limit=101)


def test_the_harness_evaluates_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {task.config.task: task for task in load_tasks(SUITE, folder)}
    assert tuple(tasks) == SUITE
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=0)
    found = evaluate(DummyLM(), {"tasks": tasks}, bootstrap_iters=0, log_samples=True)
    assert {task: len(samples) for task, samples in found["samples"].items()} == {
        task: len(rows) for task, rows in ITEMS.items()
    }


def test_nothing_is_left_in_a_cache(folder: Path) -> None:
    for task in load_tasks(SUITE, folder):
        assert not task.eval_docs.cache_files
        assert not any(split.cache_files for split in task.dataset.values())


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_other_forms_hold_the_same_items(folder: Path, tmp_path: Path, ending: str) -> None:
    content = (folder / "hellaswag.jsonl").read_bytes()
    path = tmp_path / f"hellaswag{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ITEMS["hellaswag"]), path)
    else:
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else zstandard.compress(content))
    (plain,), (other,) = load_tasks(["hellaswag"], folder), load_tasks(["hellaswag"], tmp_path)
    assert list(other.eval_docs) == list(plain.eval_docs)


Change = Callable[[list[dict[str, Any]]], None]


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        ("lambada_openai", lambda r: r[1].update(text="alone"), ["line 2", "'text'", "alone"]),
        ("lambada_openai", lambda r: r[1].update(text=""), ["line 2", "'text'"]),
        ("wikitext", lambda r: r[1].update(page=" \n"), ["line 2", "'page' is ' \\n'", "a text that is not empty"]),
        ("wikitext", lambda r: [row.update(text=row.pop("page")) for row in r], ["line 1", "no column 'page'"]),
        ("piqa", lambda r: r[2].pop("sol2"), ["line 3", "no column 'sol2'", "piqa"]),
        ("piqa", lambda r: r[2].update(label=2), ["line 3", "'label' is 2", "0 or 1"]),
        ("piqa", lambda r: r[0].update(label=-1), ["line 1", "'label' is -1", "validation split"]),
        ("piqa", lambda r: r[0].update(label="1"), ["line 1", "'label' is '1'", "needs 0 or 1"]),
        ("piqa", lambda r: r[0].update(label=True), ["line 1", "'label' is True"]),
        ("piqa", lambda r: r[1].update(sol1="  "), ["line 2", "'sol1' is '  '", "piqa needs a text that is not empty"]),
        ("piqa", lambda r: r[1].update(goal=None), ["line 2", "'goal' is None", "needs a text"]),
        ("hellaswag", lambda r: r[1].update(label=""), ["line 2", "'label' is ''", "0 to 3"]),
        ("hellaswag", lambda r: r[1]["endings"].pop(), ["line 2", "'endings'", "four texts"]),
        (
            "winogrande",
            lambda r: r[2].update(sentence="no gap"),
            ["line 3", "'sentence' is 'no gap'", "with '_'"],
        ),
        ("winogrande", lambda r: r[2].update(answer="3"), ["line 3", "'answer' is '3'", "'1' or '2'"]),
        ("winogrande", lambda r: r[2].update(option2=""), ["line 3", "'option2' is ''", "a text that is not empty"]),
        ("winogrande", lambda r: r.clear(), ["holds no items"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, task: str, change: Change, told: list[str]) -> None:
    rows = json.loads(json.dumps(ITEMS[task]))
    change(rows)
    file = write(tmp_path / f"{task}.jsonl", rows)
    with pytest.raises(DataError) as refused:
        load_tasks([task], tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{file}")
    assert "\n" not in message
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"page": "a"}\n\n{"page": \n', "line 3: not JSON"),
        (b'{"page": "a"}\n["b"]\n', "line 2: not a JSON object, but list"),
        (b'{"page": "\xff"}\n', "line 1: not JSON .*utf-8"),
        (b"", "holds no items"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "wikitext.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=told):
        load_tasks(["wikitext"], tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for ending in (".jsonl.gz", ".jsonl.zst", ".parquet"):
        file = tmp_path / f"wikitext{ending}"
        file.write_bytes(b"neither one nor another")
        with pytest.raises(DataError, match=r"damaged") as refused:
            load_tasks(["wikitext"], tmp_path)
        assert str(refused.value).startswith(str(file))
        file.unlink()


def test_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "piqa.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"lacks piqa\.jsonl: the validation split of baber/piqa.*bundle DIR --tasks piqa"
    ):
        load_tasks(SUITE, folder)


def test_two_files_for_one_split(folder: Path) -> None:
    write(folder / "piqa" / "validation.jsonl", ITEMS["piqa"])
    with pytest.raises(DataError, match="keep one"):
        load_tasks(["piqa"], folder)
    (folder / "piqa.jsonl").unlink()
    (task,) = load_tasks(["piqa"], folder)
    assert source_of(task)["split"] == "validation"


def test_few_shot_examples_come_from_their_own_split(folder: Path) -> None:
    with pytest.raises(DataError, match=r"lacks piqa/train\.jsonl.*few-shot.*--num-fewshot 2"):
        load_tasks(["piqa"], folder, num_fewshot=2)
    (without,) = load_tasks(["piqa"], folder)
    assert without.dataset["train"].num_rows == 0  # whoever asks for examples is stopped, not given the answers
    training = [{"goal": f"train {n}", "sol1": "a", "sol2": "b", "label": 0} for n in range(5)]
    write(folder / "piqa" / "train.jsonl", training)
    (task,) = load_tasks(["piqa"], folder, num_fewshot=2)
    task.set_fewshot_seed(seed=7)
    context = task.fewshot_context(task.eval_docs[0], 2)
    assert context.count("Question: train ") == 2


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    assert not reachable()
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"baber/piqa.*is unreachable.*gptstar evaluation bundle DIR --tasks piqa"):
        load_tasks(["piqa"], None)
    assert time.monotonic() - begin < 5
    assert datasets.config.HF_HUB_OFFLINE is offline


@pytest.mark.slow
def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no task 'hellaswagg': did you mean hellaswag"):
        load_tasks(["piqa", "hellaswagg"], None)


@pytest.mark.slow
def test_a_wrong_name_of_a_task_of_ones_own_gets_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "opposites.yaml").write_text("task: opposites\ndataset_path: json\noutput_type: multiple_choice\n")
    with pytest.raises(ConfigError) as refused:
        load_tasks(["opposit"], None, include_path=tmp_path)
    said = f"neither lm-evaluation-harness nor evaluation.include_path={tmp_path} has the task 'opposit': did you mean "
    assert str(refused.value).startswith(f"evaluation.tasks: {said}opposites")


ARC = [
    {"id": name, "question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": answer}
    for name, answer in (("p", "A"), ("q", "B"))
]


@pytest.mark.slow
def test_any_other_task_tag_or_group(tmp_path: Path) -> None:
    for task in ("arc_easy", "arc_challenge"):
        write(tmp_path / f"{task}.jsonl", ARC)
    assert [task.config.task for task in load_tasks(["arc_easy", "ai2_arc"], tmp_path)] == ["arc_easy", "arc_challenge"]

    write(tmp_path / "arc_easy.jsonl", [ARC[0], ARC[1] | {"answerKey": "Q"}])
    with pytest.raises(DataError, match=r"arc_easy\.jsonl, line 2: arc_easy can't use it.*'Q'"):
        load_tasks(["ai2_arc"], tmp_path)

    write(tmp_path / "pile_10k.jsonl", [{"content": "x"}])
    with pytest.raises(DataError, match=r"pile_10k\.jsonl, line 1: no column 'text'"):
        load_tasks(["pile_10k"], tmp_path)


@pytest.mark.slow
def test_a_missing_column_of_any_other_task(tmp_path: Path) -> None:
    file = write(
        tmp_path / "arc_easy.jsonl", [{key: row[key] for key in ("id", "question", "answerKey")} for row in ARC]
    )
    with pytest.raises(DataError) as refused:
        load_tasks(["arc_easy"], tmp_path)
    assert str(refused.value) == (
        f"{file}, line 1: no column 'choices', which arc_easy needs; it has id, question, answerKey"
    )


@pytest.mark.slow
def test_a_column_that_some_items_lack(folder: Path, tmp_path: Path) -> None:
    rows = [row | ({"note": "x"} if number == 1 else {}) for number, row in enumerate(ITEMS["piqa"])]
    write(tmp_path / "piqa.jsonl", rows)
    for own, plain in zip(load_tasks(["piqa"], tmp_path), load_tasks(["piqa"], folder), strict=True):
        assert asked(own) == asked(plain)
        hashes = [[item_hash(document, "piqa") for document in task.eval_docs] for task in (own, plain)]
        assert hashes[0] == hashes[1]

    write(tmp_path / "arc_easy.jsonl", [ARC[0] | {"note": "x"}, ARC[1]])
    (task,) = load_tasks(["arc_easy"], tmp_path)
    assert "note" not in task.eval_docs.features
    file = write(tmp_path / "arc_easy.jsonl", [ARC[0], {key: ARC[1][key] for key in ("id", "question", "answerKey")}])
    with pytest.raises(DataError, match=re.escape(f"{file}, line 2: no column 'choices', which arc_easy needs")):
        load_tasks(["arc_easy"], tmp_path)


def test_the_source_says_which_file_and_split(folder: Path) -> None:
    file = folder / "wikitext.jsonl"
    (task,) = load_tasks(["wikitext"], folder)
    source = source_of(task)
    assert (source["path"], source["sha256"], source["rows"]) == (str(file), file_sha256(file), 2)
    assert (source["split"], source["stands_for"]) == (None, "test")  # the file does not say

    entry = Entry("wikitext", "validation", "test", 2, 1, file_sha256(file), "x/y", None, "abc", "CC", None, None)
    write_manifest(folder, {"wikitext.jsonl": entry})
    (task,) = load_tasks(["wikitext"], folder)
    assert (source_of(task)["split"], source_of(task)["revision"]) == ("validation", "abc")

    write(file, ITEMS["wikitext"][:1])
    with pytest.raises(DataError, match=r"wikitext\.jsonl: sha256 .* has changed"):
        load_tasks(["wikitext"], folder)


def test_an_item_has_one_hash_wherever_it_stands(folder: Path, tmp_path: Path) -> None:
    (all_of_them,) = load_tasks(["hellaswag"], folder)
    needed = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    write(tmp_path / "hellaswag.jsonl", [{key: row[key] for key in needed} for row in ITEMS["hellaswag"][1:]])
    (some,) = load_tasks(["hellaswag"], tmp_path)
    hashes = [[item_hash(document, "hellaswag") for document in task.eval_docs] for task in (all_of_them, some)]
    assert hashes[0][1:] == hashes[1]
    assert len(set(hashes[0])) == 3
    assert item_hash({"b": 1, "a": "é\ud800"}) == item_hash({"a": "é\ud800", "b": 1}) != item_hash({"a": "é", "b": 1})


def test_twins_share_a_cluster() -> None:
    assert clusters_of("winogrande", ITEMS["winogrande"]) == [0, 0, 2]
    swapped = ITEMS["winogrande"][1] | {"option1": "Sue", "option2": "Ann"}
    assert clusters_of("winogrande", [ITEMS["winogrande"][2], ITEMS["winogrande"][0], swapped]) == [0, 1, 1]
    assert clusters_of("hellaswag", ITEMS["hellaswag"]) == [0, 0, 2]
    assert clusters_of("piqa", ITEMS["piqa"]) == [0, 1, 2]


def test_real_twins_are_found(shared: Path) -> None:
    lines = (shared / "benchmarks" / "winogrande.jsonl").read_text().splitlines()
    sizes = Counter(Counter(clusters_of("winogrande", [json.loads(line) for line in lines])).values())
    assert sizes == {2: 168, 1: 424}
