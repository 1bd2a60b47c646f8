"""Results files and run directories that were changed at random: they are read, left out with a warning, or refused."""

import contextlib
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from gptstar import results
from gptstar.cli import main
from gptstar.evaluation.results import Metric, Sample, TaskResult, TaskResults, write_tasks
from support.mutations import change_json, damaged, refusal_of
from support.recall import asked, looked_up, write_recall
from support.runs import SMALL, evaluate_here, run_here


def tasks_of(run: Path, seed: int) -> TaskResults:
    """An evaluation on one task, of a run's checkpoint."""
    draw = random.Random(seed)
    samples = []
    for item in range(7):
        scores = {"acc": float(draw.random() < 0.5), "perplexity": (-draw.uniform(1, 9), 3.0)}
        samples.append(Sample(item, f"hash{item}", item // 2, scores))
    metrics = (
        Metric("acc", 0.5, 0.3, 0.7, "Wilson", "mean", higher_is_better=True, items=7),
        Metric("perplexity", 9.0, 5.0, 13.0, "bootstrap-t", "perplexity", higher_is_better=False, items=7),
    )
    task = TaskResult("piqa", "1.0", {"path": "a"}, 32, 0, metrics, tuple(samples))
    who = {"name": run.name, "path": str(run / "best.ckpt"), "sha256": f"{seed:064x}", "step": 6}
    return TaskResults(who, {"dtype": "float32", "seeds": {"fewshot": 1}}, {"lm-eval": "0.4.9"}, (task,))


@pytest.fixture(scope="module")
def swept(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with readings at several lengths, and an evaluation of each."""
    folder = tmp_path_factory.mktemp("swept")
    few = ("total_steps=6", "schedule.warmup_steps=1", "validate_every=3", "checkpoint_every=6")
    reading = ("reading.multiples=[1,2]", "reading.max_tokens=256", "reading.rotary_scaling=[none]")
    for seed in (0, 1):
        run = folder / f"seed-{seed}"
        run_here([*SMALL, "data=local", f"data.files={text}", *few, *reading, f"seed={seed}", f"output={run}"])
        write_tasks(tasks_of(run, seed), run / "tasks")
        heads = ("evaluation.multiples=[1,2]", "evaluation.max_queries=64", "hardware=cpu", f"output={run / 'heads'}")
        evaluate_here("evaluation=heads", f"checkpoint={run}", *heads)
        who = {"name": f"{run.name}/best", "path": str(run / "best.ckpt"), "sha256": f"{seed:064x}"}
        write_recall(run / "recall", asked(looked_up, who, items=7, multiples=(1, 2), loads=()))
        for checkpoint in run.glob("*.ckpt"):
            checkpoint.unlink()
    return folder


def change(folder: Path, name: str, draw: random.Random) -> None:
    path = folder / "seed-1" / name
    if path.suffix == ".json":
        change_json(path, draw)
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))


def use(folder: Path, capsys: pytest.CaptureFixture[str], *, reports: bool) -> None:
    """Do what notebooks and commands do: nothing that is sound may be hidden by what is damaged."""
    assert "seed-0" in set(results.runs(folder)["run"])
    results.curves(folder)
    assert "seed-0" in set(results.lengths(folder)["run"])
    assert "seed-0" in set(results.tasks(folder)["run"])
    assert "seed-0" in set(results.recall(folder)["run"])
    assert "seed-0" in set(results.heads(folder)["run"])
    results.recall_rates(folder)
    commands: list[list[str]] = [["runs", str(folder)], ["compare", *(str(folder / f"seed-{n}") for n in (0, 1))]]
    for words in [*commands, ["report", str(folder)]] if reports else commands:
        with contextlib.suppress(SystemExit):
            main(words)
        said = capsys.readouterr().err
        assert "error: " not in said, f"{words[0]} hides the other run: {said}"
    capsys.readouterr()


STUDIES = [f"{kind}/results.json" for kind in ("tasks", "length", "heads", "recall")]
FILES = (*STUDIES, "config.yaml", "versions.json", "status.json", "metrics.csv")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("begin", "end"), [(0, 1), pytest.param(1, 504, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_changed_results_are_read_or_left_out(
    name: str, begin: int, end: int, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(begin, end):
        folder = shutil.copytree(swept, tmp_path / "swept")
        change(folder, name, random.Random(seed))
        action = partial(use, folder, capsys, reports=seed % 20 == 19)
        assert not refusal_of(f"{name} {seed}", action)
        shutil.rmtree(folder)
