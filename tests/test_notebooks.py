"""The notebooks: committed without output, and run from top to bottom on runs made on the spot."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support import ROOT
from support.runs import SMALL, run_here

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
    """A sweep over context length and positions, and an evaluation of one of its runs."""
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
    items = [{"goal": f"goal {number}", "sol1": "ba", "sol2": "de", "label": number % 2} for number in range(12)]
    (folder / "tasks").mkdir()
    (folder / "tasks/piqa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    words = ["evaluation.tasks=[piqa]", f"evaluation.data_dir={folder / 'tasks'}", "hardware=cpu"]
    run = folder / "sweep/context_length-32_positions-alibi_seed-0"
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", str(results / "sweep"))
    monkeypatch.setenv("EVALUATIONS", str(results / "evaluation"))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if "data" in output]
    assert any("image/png" in each for each in shown) or path.stem == "sizing"
    assert any("text/html" in each for each in shown) or path.stem == "alibi"
