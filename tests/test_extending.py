"""docs/extending.md, carried out: its files lie in a user's folder, and its commands run there, at a small size."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from gptstar.checkpoint.read import read
from gptstar.choices import Choices
from gptstar.cli import main
from gptstar.config import EvaluateConfig, TrainConfig
from gptstar.data.text.sources import SOURCES
from gptstar.entry import compose, one_line_errors
from gptstar.launch import evaluate
from gptstar.model.blocks import BLOCKS
from gptstar.model.positions import POSITIONS
from gptstar.training.averaging import AVERAGING
from gptstar.training.optimizers import OPTIMIZERS
from gptstar.training.run import train
from gptstar.training.schedules import SCHEDULES
from gptstar.training.status import Status
from support import ROOT
from support.positions import EVERY_FOLDER
from support.runs import SMALL, recorded

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
REGISTRIES: tuple[Choices[Any], ...] = (POSITIONS, BLOCKS, OPTIMIZERS, SCHEDULES, AVERAGING, SOURCES)
SHORT = (*SMALL, "total_steps=12", "checkpoint_every=4", "validate_every=4")


class Block(NamedTuple):
    """A fenced block of the page: the section it is in, its language, the file it is, if it is one, and its text."""

    section: str
    language: str
    file: str | None
    text: str


def blocks() -> list[Block]:
    found, section, before = [], "", ""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("```"):
            text = []
            for inner in lines:
                if inner == "```":
                    break
                text.append(inner)
            file = re.search(r"`([\w/]+\.\w+)`:$", before)
            found.append(Block(section, line[3:], file and file[1], "\n".join(text) + "\n"))
        before = line or before
    return found


BLOCKS_OF_THE_PAGE = blocks()


def commands(section: str) -> list[list[str]]:
    """The words of each command of a section."""
    (text,) = [
        "".join(block.text for block in BLOCKS_OF_THE_PAGE if (block.section, block.language) == (section, "bash"))
    ]
    words = [shlex.split(command) for command in re.split(r"\n(?=gptstar |python )", text.strip().replace("\\\n", ""))]
    assert words, section
    return words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the page's files, which the user is in; what they register is forgotten afterwards."""
    place = tmp_path / "mine"
    place.mkdir()
    for block in BLOCKS_OF_THE_PAGE:
        if block.file:
            (place / block.file).parent.mkdir(parents=True, exist_ok=True)
            (place / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(place)
    modules = {path.stem for path in place.glob("*.py")}
    classes = [dict(registry._classes) for registry in REGISTRIES]
    for registry in REGISTRIES:  # without what other tests registered
        registry._classes = {
            name: cls for name, cls in registry._classes.items() if cls.__module__.partition(".")[0] == "gptstar"
        }
    path = list(sys.path)
    yield place
    sys.path[:] = path
    for registry, before in zip(REGISTRIES, classes, strict=True):
        registry._classes = before
    for name in modules:
        sys.modules.pop(name, None)


def run(words: list[str], *more: str) -> None:
    """Run one command of the page in this process: what the scripts do once Hydra has composed."""
    program, name, *rest = words
    assert program == "gptstar"
    if name not in ("train", "evaluate"):
        main([name, *rest, *more])
        return
    config_dir = None
    if "--config-dir" in rest:
        place = rest.index("--config-dir")
        config_dir, rest = Path(rest[place + 1]), rest[:place] + rest[place + 2 :]
    with one_line_errors():
        composed = compose(name, [*rest, *more], config_dir)
        if name == "evaluate":
            evaluate.run(EvaluateConfig.parse(composed).check_here())
            return
        config = TrainConfig.parse(composed).check_here()
        train(config.recipe, config.hardware, config.record, OmegaConf.to_yaml(composed, resolve=True))


@pytest.fixture
def small(text: str) -> list[str]:
    return [*SHORT, "data=local", f"data.files={text}"]


def losses_fall(folder: Path) -> bool:
    losses = list(recorded(folder).values())
    return len(losses) == 12 and losses[-1] < losses[0]


def assert_goes_on_exactly(command: list[str], small: list[str], output: str) -> None:
    """The page's command, stopped on the way and given again, ends as the one that was not stopped."""
    words = [word for word in command if not word.startswith("output=")]
    run(words, *small, "output=whole", "schedule.decay_until=null")
    run(words, *small, f"output={output}", "total_steps=6", "schedule.decay_until=12")
    run(words, *small, f"output={output}", "schedule.decay_until=12")
    assert recorded(Path("whole")) == recorded(Path(output))
    first, second = (read(Path(each) / "last.ckpt") for each in ("whole", output))
    torch.testing.assert_close(first.weights, second.weights, rtol=0, atol=0)
    torch.testing.assert_close(first.training.optimizer, second.training.optimizer, rtol=0, atol=0)


def test_the_page_has_what_the_tests_look_for() -> None:
    files = {block.file for block in BLOCKS_OF_THE_PAGE if block.file}
    assert {name for name in files if name.endswith(".py")} == {
        f"{name}.py" for name in ("power", "rezero", "lion", "halving", "readmes", "smooth", "theirs", "ours")
    }
    assert {"tasks/opposites.yaml", "tasks/opposites.jsonl", "conf/experiment/mine.yaml", "pyproject.toml"} < files
    for block in BLOCKS_OF_THE_PAGE:
        if block.language == "python":
            assert block.file, block.text
            compile(block.text, block.file, "exec")
        if block.language == "bash":
            assert all(len(line) <= 80 for line in block.text.splitlines()), block.text


def test_positions(folder: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    training, length, generating, exporting = commands("1. A kind of positions")
    run(training, *small)
    assert losses_fall(Path("runs/power"))
    checkpoint = read(Path("runs/power/last.ckpt"))
    assert checkpoint.model.as_dict()["positions"] == {"kind": "power", "largest": 2.0, "plugin": "power"}
    assert checkpoint.weights["position_parameters.strength"].shape == (3,)
    assert yaml.safe_load(Path("runs/power/config.yaml").read_text())["plugins"] == ["power"]
    run(length, "hardware=cpu", "evaluation.max_tokens=512")
    (curve,) = json.loads(Path("results/power/results.json").read_text())["curves"]
    assert [each["context_length"] for each in curve["lengths"]] == [32, 64, 128, 256]
    capsys.readouterr()
    run(generating)
    assert capsys.readouterr().out.startswith("The")
    run(exporting)
    assert {path.name for path in Path("exported").glob("*.py")} == {"base.py", "power.py", *EVERY_FOLDER}
    run(["gptstar", "import", "exported", "back.ckpt", "--plugins", "power"])
    assert torch.equal(
        read(Path("back.ckpt")).weights["token_embedding.weight"],
        read(Path("runs/power/best.ckpt")).weights["token_embedding.weight"],
    )


def test_a_missing_plugin_is_told_in_the_line_that_the_page_has(
    folder: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(commands("1. A kind of positions")[0], *small)
    del POSITIONS._classes["power"]
    sys.modules.pop("power")
    (block,) = [block for block in BLOCKS_OF_THE_PAGE if block.language == "console"]
    command, said = block.text.splitlines()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(shlex.split(command.removeprefix("$ ")))
    assert capsys.readouterr().err.splitlines() == [said]
    assert "power" not in sys.modules  # the file lies right here, and nobody imported it
    with pytest.raises(SystemExit):
        run(["gptstar", "evaluate", "checkpoint=runs/power", "hardware=cpu", "output=results/none"])
    assert capsys.readouterr().err.rstrip().endswith("add plugins=[power]")
    with pytest.raises(SystemExit):
        run(["gptstar", "train", "output=runs/power", *small, "total_steps=20"])
    out, err = capsys.readouterr()
    assert err.rstrip().endswith("add plugins=[power]")
    assert "trying" not in out, "older checkpoints need the plugin, too"
    with pytest.raises(SystemExit):
        run(["gptstar", "generate", "runs/power", "--plugins", "powre"])
    assert capsys.readouterr().err == (
        "error: the plugin powre can't be imported: No module named 'powre'; did you mean power?\n"
    )


def test_a_block(folder: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (training,) = commands("A residual block")
    run(training, *small, "data.attention=within")
    assert losses_fall(Path("runs/rezero"))
    checkpoint = read(Path("runs/rezero/last.ckpt"))
    assert checkpoint.model.as_dict()["residual"] == {"kind": "rezero", "plugin": "rezero"}
    assert checkpoint.model.n_params == sum(value.numel() for value in checkpoint.weights.values())
    scales = [checkpoint.weights[f"blocks.{layer}.scale"].item() for layer in (0, 1)]
    assert all(0 < abs(scale) < 0.1 for scale in scales), "it begins at zero and learns"
    capsys.readouterr()
    main(["generate", "runs/rezero", "--plugins", "rezero", "--prompt", "a", "--tokens", "5", "--greedy"])
    assert capsys.readouterr().out.startswith("a")
    with pytest.raises(SystemExit):
        main(["export", "runs/rezero", "exported", "--plugins", "rezero"])
    said = capsys.readouterr().err
    assert said.startswith("error: model.residual=rezero is your own block, from rezero, but an exported folder")
    assert said.count("\n") == 1
    del BLOCKS._classes["rezero"]
    with pytest.raises(SystemExit):
        main(["generate", "runs/rezero"])
    assert capsys.readouterr().err.rstrip().endswith("add plugins=[rezero]")


def test_an_optimizer(folder: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    training, generating = commands("2. An optimizer")
    assert_goes_on_exactly(training, small, "runs/lion")
    assert losses_fall(Path("runs/lion"))
    state = read(Path("runs/lion/last.ckpt")).training
    said = {key: state.settings[f"optimizer.{key}"] for key in ("algorithm", "plugin", "learning_rate", "beta2")}
    assert said == {"algorithm": "lion", "plugin": "lion", "learning_rate": 4e-4, "beta2": 0.99}
    assert {frozenset(each) for each in state.optimizer.values()} == {frozenset({"mean"})}
    del OPTIMIZERS._classes["lion"]
    capsys.readouterr()
    run(generating)
    assert capsys.readouterr().out.startswith("The")


def test_a_schedule(folder: Path, small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    (training,) = commands("A schedule")
    run(training, *small, "schedule.every=4", "optimizer.learning_rate=0.008")
    rates = recorded(Path("runs/halving"), "learning_rate")
    assert [rates[step] for step in (4, 7, 8, 11, 12)] == pytest.approx([0.008, 0.008, 0.004, 0.004, 0.002])

    without = [word.removeprefix("+") for word in training]
    monkeypatch.setattr(sys, "argv", without)
    with pytest.raises(SystemExit):
        run(without, *small)
    assert "give it as +schedule.every=VALUE" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dataset(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    preparing, training = commands("3. A dataset")[:2]
    run(preparing, *SHORT, "data.shards=shards")
    manifest = json.loads(Path("shards/manifest.json").read_text())
    source = manifest["sources"]["readmes"]
    assert source["source"] == "readmes(shortest=200) of readmes"
    readmes = sys.modules["readmes"]
    assert source["counts"]["documents"] == len(list(readmes.Readmes().documents(0)))
    before = (Path("shards/manifest.json").read_bytes(), sorted(os.listdir("shards")))
    run(training, *SHORT, "data.shards=shards")
    assert losses_fall(Path("runs/readmes"))
    assert before == (Path("shards/manifest.json").read_bytes(), sorted(os.listdir("shards")))
    corpora = read(Path("runs/readmes/last.ckpt")).training.data["corpora"]
    assert corpora["readmes"]["source"] == source["source"]
    mixing = [f"data.files={text}" if word.startswith("data.files=") else word for word in commands("3. A dataset")[2]]
    run(mixing, *SHORT, "data.shards=mixed")
    sources = json.loads(Path("mixed/manifest.json").read_text())["sources"]
    assert list(sources) == ["alpha", "beta", "readmes"]
    assert sources["readmes"]["epochs"] == 2.0
    assert sources["readmes"]["source"] == "readmes(shortest=500) of readmes"
    assert sources["readmes"]["counts"]["documents"] <= source["counts"]["documents"]


def test_a_task(folder: Path, small: list[str]) -> None:
    run(commands("2. An optimizer")[0], *small, "total_steps=4")
    (evaluating,) = commands("4. A harness task")
    run(evaluating, "hardware=cpu")
    results = json.loads(Path("results/opposites/results.json").read_text())
    (task,) = results["tasks"]
    assert (task["task"], task["version"], len(task["samples"])) == ("opposites", "1.0", 4)
    assert {metric["name"] for metric in task["metrics"]} == {"acc", "bits_per_byte"}
    assert task["source"]["path"] == "tasks/opposites.jsonl"
    before = results["protocol"]["include_path"]
    assert before["path"] == "tasks"
    Path("tasks/opposites.yaml").write_text(Path("tasks/opposites.yaml").read_text().replace("is", "was", 1))
    again = [word.replace("results/", "results/again-") for word in evaluating]
    run(again, "hardware=cpu")
    after = json.loads(Path("results/again-opposites/results.json").read_text())["protocol"]["include_path"]
    assert after["sha256"] != before["sha256"]


@pytest.mark.slow
def test_a_callback(folder: Path, small: list[str]) -> None:
    training, stopping = commands("5. A Lightning callback")
    assert_goes_on_exactly(training, small, "runs/smooth")
    smooth, losses = (recorded(Path("runs/smooth"), f"train/loss{each}") for each in ("_smooth", ""))
    assert smooth == recorded(Path("whole"), "train/loss_smooth")
    mean = losses[1]
    for step in range(1, 13):
        mean = 0.95 * mean + 0.05 * losses[step]
        assert smooth[step] == pytest.approx(mean, rel=1e-9)
    callbacks = read(Path("runs/smooth/last.ckpt")).training.callbacks
    assert callbacks == {"SmoothLoss": {"mean": smooth[12]}}

    run(stopping, *small, "optimizer.learning_rate=1e-12", "total_steps=40", "schedule.decay_until=null")
    status = Status.read(Path("runs/early"))
    assert status.state == "finished"
    assert status.reason.startswith("EarlyStopping: ")
    assert "validation/loss" in status.reason
    at_the_end = recorded(Path("runs/early"))
    assert max(at_the_end) == 12  # two validations after the first were not better by min_delta
    run(stopping, *small, "optimizer.learning_rate=1e-12", "total_steps=40", "schedule.decay_until=null")
    assert recorded(Path("runs/early")) == at_the_end


def test_a_logger(folder: Path, small: list[str]) -> None:
    (training,) = commands("A logger")
    run(training, *small)
    (file,) = Path("runs/logged/csv").rglob("metrics.csv")
    assert "train/loss" in file.read_text().splitlines()[0]
    word = re.search(r"`(tracker=\[\S+\])`", PAGE)[1]
    assert TrainConfig.parse(compose("train", [word])).record.tracker.names == ["tensorboard", "wandb"]


def test_configuration_files(folder: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    showing, training, _ = commands("Your own configuration files")
    capsys.readouterr()
    run(showing)
    said = yaml.safe_load(capsys.readouterr().out.partition("\n# ")[0])
    assert said["optimizer"] == yaml.safe_load(Path("conf/optimizer/lion.yaml").read_text())
    assert (said["plugins"], said["name"], said["total_steps"]) == (["lion"], "mine", 850)
    run(training, *small)
    assert read(Path("runs/mine/last.ckpt")).training.settings["optimizer.algorithm"] == "lion"


def test_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    installed = folder / "site/my_parts-1.0.dist-info"
    installed.mkdir(parents=True)
    installed.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    groups = project["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    installed.joinpath("entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(folder / "site")
    words = ["model.positions=power", "optimizer.algorithm=lion"]
    config = TrainConfig.parse(compose("train", words))
    assert POSITIONS.name_of(config.recipe.model.positions) == "power"
    assert OPTIMIZERS.name_of(config.recipe.optimizer) == "lion"
    named = re.search(r"The entry-point groups are (.*?)\n\n", PAGE, re.DOTALL)[1]
    of_ours = {f"gptstar.{registry.key.rpartition('.')[2]}" for registry in REGISTRIES}
    assert set(re.findall(r"`([\w.]+)`", named)) == of_ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice, which is not ours to follow
@pytest.mark.parametrize(
    ("section", "above"), [("Your own module, our data", 3.0), ("Your own Trainer, our model", 0.5)]
)
def test_lightning_without_our_commands(
    folder: Path, section: str, above: float, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    ((python, script),) = commands(section)
    assert python == "python"
    runpy.run_path(script, run_name="__main__")
    loss = float(re.search(r"^loss ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)[1])
    assert above < loss < {"theirs.py": 6.2, "ours.py": 4.6}[script]  # ln 512 = 6.24, ln 100 = 4.61
    if script == "ours.py":
        assert read(Path("ours.ckpt")).build()(torch.arange(7)[None]).shape == (1, 7, 100)


@pytest.mark.slow
def test_every_command_as_a_process(folder: Path, small: list[str], text: str) -> None:
    """In the order of the page, from the folder of the user, with nothing but it and gptstar on Python's path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    quick = next(block.text for block in BLOCKS_OF_THE_PAGE if block.language == "text").replace("\\\n", "").split()
    for block in BLOCKS_OF_THE_PAGE:
        if block.language != "bash":
            continue
        for words in commands(block.section):
            more: list[str] = []
            if words[1] in ("train", "prepare", "config"):
                more = [*small, *quick, "total_steps=12", "batch_tokens=256"]
                if any("readmes" in word for word in words):
                    more = [word for word in more if not word.startswith("data.files")]
            if words[1] == "evaluate":
                more = ["hardware=cpu"]
            words = [f"data.files={text}" if word.startswith("data.files=") else word for word in words]
            program = [sys.executable, "-m", "gptstar"] if words[0] == "gptstar" else [sys.executable]
            done = subprocess.run(
                [*program, *words[1:], *more], env=environment, capture_output=True, text=True, check=False, timeout=300
            )
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    states = {path.parent.name: Status.read(path.parent).state for path in Path("runs").rglob("status.json")}
    assert set(states.values()) == {"finished"}, states
    named = {"power", "rezero", "lion", "halving", "readmes", "smooth", "early", "logged", "mine"}
    assert set(states) == named | {"seed-0", "seed-1"}
