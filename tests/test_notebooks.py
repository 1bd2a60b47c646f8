"""Notebooks are committed without output, and run from top to bottom on freshly made runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gptstar.results.notebook import folder
from support import ROOT
from support.recall import asked, looked_up, write_recall
from support.runs import SMALL, evaluate_here, run_here

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_output(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


def test_all_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["alibi", "benchmarks", "extrapolation", "runs", "sizing"]


@pytest.fixture(scope="session")
def results(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a sweep over context length and positions, and an evaluation of one of its runs."""
    folder = tmp_path_factory.mktemp("results")
    few = (
        "total_steps=6",
        "schedule.warmup_steps=1",
        "validate_every=3",
        "reading.multiples=[1,2,4]",
        "reading.max_tokens=512",
    )
    for length in (32, 16):
        for positions in ("alibi", "rotary"):
            for seed in (0, 1):
                varied = (f"data.context_length={length}", f"model.positions={positions}", f"seed={seed}")
                where = folder / f"sweep/context_length-{length}_positions-{positions}_seed-{seed}"
                run_here([*SMALL, "data=local", f"data.files={text}", *few, *varied, f"output={where}"])
    run = folder / "sweep/context_length-32_positions-alibi_seed-0"
    heads = ("evaluation=heads", "hardware=cpu", "evaluation.multiples=[1,2]", "evaluation.max_queries=64")
    evaluate_here(*heads, f"checkpoint={run}", f"output={run / 'heads'}")
    who = {"name": "seed-0/best", "path": str(run / "best.ckpt"), "sha256": "0" * 64}
    write_recall(run / "recall", asked(looked_up, who, items=7))
    items = [{"goal": f"goal {number}", "sol1": "ba", "sol2": "de", "label": number % 2} for number in range(12)]
    (folder / "tasks").mkdir()
    (folder / "tasks/piqa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    words = ["evaluation.tasks=[piqa]", f"evaluation.data_dir={folder / 'tasks'}", "hardware=cpu"]
    command = [
        sys.executable,
        str(ROOT / "evaluate.py"),
        f"checkpoint={run}",
        *words,
        f"output={folder / 'evaluation'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def executed(path: Path) -> tuple[list["NotebookNode"], str]:
    """Run a notebook in its own folder, as Jupyter does; return its outputs, and the text of its last cell."""
    import nbformat  # takes four seconds, which the tests of every day need not wait for
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return outputs, "".join(output.get("text", "") for output in cells[-1].outputs)


SENTENCES = {
    "alibi": "Of 8 heads, the steepest has half of its attention within 2 tokens, the flattest within 178;",
    "benchmarks": "Of 7 published scores compared with context_length-32_positions-alibi_seed-0/best's, ",
    "extrapolation": "Read at 4 × their training context, the loss of alibi, averaged over 2 training contexts, ",
    "runs": "Of 2 values of model.positions, ",
    "sizing": "gpt127 has +2.1% parameters and costs ",
}

ALSO = {"extrapolation": ("heads of alibi, 32 give tokens beyond", "alibi, 32 learned recall (95 % right at")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_end_with_a_sentence(path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are relative to the working directory of the command."""
    monkeypatch.setenv("PWD", str(results))
    monkeypatch.setenv("RUNS", "sweep")
    monkeypatch.setenv("EVALUATIONS", "evaluation")
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    outputs, sentence = executed(path)
    shown = [output.data for output in outputs if "data" in output]
    assert any("image/png" in each for each in shown) or path.stem == "sizing"
    assert any("text/html" in each for each in shown) or path.stem == "alibi"
    assert sentence.startswith(SENTENCES[path.stem])
    assert all(each in sentence for each in ALSO.get(path.stem, ()))
    assert sentence.rstrip().endswith(".")


ADVICE = {
    "benchmarks": ["run `python evaluate.py checkpoint=RUN`", "No model here was scored on what was published."],
    "extrapolation": ["evaluation=length", "No run was read beyond its training context"],
    "runs": ["python train.py -m seed=0,1,2", "There is no run."],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", ADVICE)
def test_notebooks_give_advice_where_there_is_nothing(
    name: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RUNS", "EVALUATIONS"):
        monkeypatch.setenv(variable, "nothing")
    monkeypatch.setenv("PWD", str(tmp_path))
    if is_there:
        (tmp_path / "nothing").mkdir()
    outputs, sentence = executed(ROOT / f"notebooks/{name}.ipynb")
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in printed
    assert "Warning" not in printed
    assert all(advice in printed for advice in ADVICE[name])
    assert ADVICE[name][-1] in sentence


def test_a_folder_is_relative_to_where_the_command_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed/runs").mkdir(parents=True)
    (tmp_path / "project/notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project/notebooks")  # as a kernel does
    monkeypatch.setenv("PWD", str(tmp_path / "typed"))
    monkeypatch.setenv("RUNS", "runs")
    assert folder("RUNS") == tmp_path / "typed/runs"
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert folder("RUNS") == tmp_path
    monkeypatch.delenv("RUNS")
    (tmp_path / "project/sizes").mkdir()
    assert folder("RUNS", "sizes") == tmp_path / "project/sizes"  # of the project, where nothing was typed
    assert folder("RUNS", "nowhere") == tmp_path / "typed/nowhere"
