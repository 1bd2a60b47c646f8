"""Evaluations from a checkout that is not installed, with only its source on the path."""

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptstar import __version__
from gptstar.checkpoint.format import Checkpoint, write
from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.results import read_tasks
from gptstar.model import GPT, GPTConfig
from support import ROOT
from support.text import sentences, write_tasks_files

INTERPRETER = (sys.executable, "-S")  # without site: it reads no .pth file, so no editable installation


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which every package is installed except this one."""
    packages = tmp_path_factory.mktemp("python") / "site-packages"  # by this name dill knows what not to pickle
    packages.mkdir()
    (installed,) = (Path(folder) for folder in site.getsitepackages() if (Path(folder) / "torch").is_dir())
    for each in installed.iterdir():
        if "gptstar" not in each.name:
            (packages / each.name).symlink_to(each)
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{packages}"}


def test_the_checkout_is_not_installed_there(environment: dict[str, str]) -> None:
    ask = "import gptstar, importlib.metadata as m; print(gptstar.__version__); m.version('gptstar')"
    done = subprocess.run([*INTERPRETER, "-c", ask], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == __version__
    assert "PackageNotFoundError" in done.stderr


@pytest.mark.slow
def test_an_evaluation_writes_its_results(environment: dict[str, str], tmp_path: Path) -> None:
    bpe = Tokenizer.train(sentences(60, 80, seed=1), 300)
    config = GPTConfig(n_layers=2, d_model=24, n_heads=3, n_vocab=300)
    torch.manual_seed(0)
    write(tmp_path / "model.ckpt", Checkpoint(config, GPT(config).state_dict(), bpe.json_text))
    tasks = [f"evaluation.data_dir={write_tasks_files(tmp_path / 'tasks', 5)}", "evaluation.tasks=[piqa]"]
    command = [*INTERPRETER, str(ROOT / "evaluate.py"), f"checkpoint={tmp_path / 'model.ckpt'}", *tasks]
    command.append(f"output={tmp_path / 'results'}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_tasks(tmp_path / "results").versions["gptstar"] == __version__
