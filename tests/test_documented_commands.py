"""Every command of README.md and docs: checked word by word, then run at a small size, or not for a reason.

Checked means: the overrides of train.py and evaluate.py compose to a configuration that parses, for each value of a
sweep; the arguments of a `gptstar` command are arguments that it has; a target of make and an extra exist.
"""

import functools
import glob
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from gptstar.checkpoint.read import read
from gptstar.cli import SCRIPTS, build_parser, main
from gptstar.config import EvaluateConfig, TrainConfig
from gptstar.entry import compose, with_quoted_values
from support import ROOT
from support.documents import PAGES, Command, commands, write_files
from support.runs import SMALL, evaluate_here, run_here
from support.text import sentences, write_tasks_files

REASONS = {
    r"(train|evaluate)(\.py)? --help": "test_entrypoints.py runs it",
    r"train (.* )?(-m |launcher=slurm)": "many runs: tests/launch runs sweeps and searches",
    r"train .*experiment=(?!study)": "hours: test_config.py composes every experiment",
    r"train .*(branch_from|schedule=wsd)": "2,000 steps: tests/training/test_schedules.py branches",
    r"train .*corpora\.recall": "tens of millions of tokens: tests/data/text/test_recall.py mixes it in",
    r"train .*fineweb10B": "needs what the command before it adopts",
    r"train .*averaging=": "a study: tests/training/averaging trains with averages",
    r"evaluate .*(arc_easy|blimp|output=results/mine$)": "downloads benchmark items",
    r"evaluate .*data_dir=benchmarks": "five tasks, seconds: tests/evaluation/tasks/test_offline.py evaluates on files",
    r"evaluate .*(legacy|enwik8|wiki\.test)": "needs published text and weights: tests/evaluation/length reads both",
    r"evaluate .*evaluation=recall": "needs a model of recall: tests/evaluation/recall evaluates one",
    r"evaluate .*fixed_targets": "contexts of 4,096 tokens and more: tests/evaluation/length runs the protocol",
    r"gptstar lm_eval": "downloads benchmark items: tests/evaluation/test_harness.py runs the command",
    r"gptstar evaluation bundle": "downloads benchmark items: tests/evaluation/tasks/test_bundle.py runs it on files",
    r"gptstar download": "downloads weights: tests/checkpoint/test_published.py runs it against a local server",
    r"gptstar import (path/to/gpt2|127_model)": "needs weights of others: tests/checkpoint imports such files",
    r"gptstar demo": "serves until Ctrl-C: tests/inference/test_demo.py opens the page",
    r"gptstar runs --watch": "runs until Ctrl-C",
    r"gptstar data adopt": "needs tokens of llm.c: tests/data/preparation/test_adopt.py adopts some",
    r"train .*reading\.controls": "documents of 8 windows: tests/results/test_verdicts.py trains with controls",
    r"gptstar study": "needs a study: tests/launch/test_study_table.py saves and restores one",
    r"gptstar report": "draws for seconds: tests/results/test_report.py writes reports",
    r"gptstar compare": "needs evaluations: tests/evaluation/test_compare.py compares some",
    r"make (train|test|bench|docs|reference)": "installs packages, or takes minutes",
    r"pip (install|download)|python3? -m (venv|build)|source ": "installs packages",
    r"python (benchmarks/|\.ci/)|\.ci/core|twine": "measures or releases the project itself",
    r"hf |jupyter |jq ": "a program of others",
}
"""Patterns of commands that are not run, and why."""

BY_ANOTHER_TEST = {"docs/extending.md"}
"""Pages all of whose commands test_extending.py runs."""

SIZE = (*SMALL, "total_steps=3", "schedule.warmup_steps=1")
MORE = {
    "evaluate": ("hardware=cpu",),
    "prepare": ("model.n_vocab=300", "data.workers=1"),
    "generate": ("--tokens", "3"),
}
"""What makes a command small."""


def script(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """`train` or `evaluate` and its words for either way to call it; else an empty name."""
    if words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
        return words[1].removesuffix(".py"), list(words[2:])
    if words[0] == "gptstar" and words[1] in ("train", "evaluate"):
        return words[1], list(words[2:])
    return "", list(words)


def reason(command: Command) -> str | None:
    name, words = script(command.words)
    line = command.text if not name else " ".join([name, *words])
    return next((pattern for pattern in REASONS if re.match(pattern, line)), None)


@pytest.fixture(scope="module")
def trained(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for given: runs, text, shards' tokenizer, benchmarks."""
    folder = tmp_path_factory.mktemp("documented")
    run_here([*SIZE, "data=local", f"data.files={text}", f"output={folder / 'runs/mine'}"])
    for name in ("other", "alibi", "rotary", *(f"{sweep}/seed-0" for sweep in ("lengths", "rates"))):
        shutil.copytree(folder / "runs/mine", folder / "runs" / name)
    for name in ("127.ckpt", "gpt2.ckpt"):
        shutil.copy(folder / "runs/mine/best.ckpt", folder / name)
    for corpus in ("books", "text/books", "text/notes", "NOTES", "heldout"):
        (folder / corpus).mkdir(parents=True)
    source = Path(glob.glob(text)[0]).read_bytes()
    for place in ("books/a.jsonl.zst", "text/books/a.jsonl.zst", "text/notes/b.jsonl.zst"):
        (folder / place).write_bytes(zstandard.compress(source))
    for place in ("NOTES/a.txt", "heldout/a.txt"):
        (folder / place).write_text("\n\n".join(sentences(40, 30, seed=5)))
    (folder / "letter.txt").write_text("Dear friend,")
    tokenizer = read(folder / "127.ckpt").tokenizer
    assert tokenizer is not None
    (folder / "gpt2.json").write_text(tokenizer, encoding="utf-8")
    write_tasks_files(folder / "benchmarks")
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which the user is in."""
    folder = tmp_path / "user"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def filled(words: list[str]) -> list[str]:
    """Words in which `…` stands for whatever the reader has: a path, or by itself a text and an experiment."""
    own = (
        ["data.shards=x"]
        if any(word.startswith("experiment=") for word in words)
        else ["experiment=gpt303", "data.shards=x"]
    )
    return [each.replace("…", "x") for word in words for each in (own if word == "…" else [word])]


def jobs(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Overrides of jobs that together have every value of a sweep's keys; of numbers and of files in conf the first."""
    parser = OverridesParser.create()
    swept: list[list[str]] = []
    plain: list[str] = []
    for override in parser.parse_overrides(with_quoted_values([*_of_experiments(words), *words])):
        key = override.input_line.partition("=")[0]
        if key.startswith("hydra.sweeper") or key == "hydra/sweeper":
            continue
        if not override.is_sweep_override():
            plain.append(str(override.input_line))
        elif override.is_interval_sweep():
            values = override.value()
            swept.append([f"{key}={values.start}", f"{key}={values.end}"])
        else:
            values = list(override.sweep_string_iterator())
            if (ROOT / "conf" / key).is_dir():
                assert all((ROOT / f"conf/{key}/{value}.yaml").is_file() or value == "mine" for value in values), key
            is_like_the_first = (ROOT / "conf" / key).is_dir() or all(
                re.fullmatch(r"[-\d.e]+", each) for each in values
            )
            swept.append([f"{key}={value}" for value in (values[:1] if is_like_the_first else values)])
    first = [values[0] for values in swept]
    yield (*first, *plain)
    for at, values in enumerate(swept):
        for value in values[1:]:
            yield (*first[:at], value, *first[at + 1 :], *plain)


def _of_experiments(words: list[str]) -> Iterator[str]:
    """What an experiment that is a sweep varies, unless the words say otherwise."""
    for word in words:
        key, _, name = word.partition("=")
        file = ROOT / f"conf/experiment/{name}.yaml"
        if key == "experiment" and file.is_file():
            varied = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {}
            yield from (
                f"{own}={values}"
                for own, values in varied.items()
                if not any(each.startswith(f"{own}=") for each in words)
            )


def without_config_dir(words: list[str]) -> Path | None:
    """Take `--config-dir DIR` out of words; the folder."""
    if "--config-dir" not in words:
        return None
    place = words.index("--config-dir")
    _, folder = words[place : place + 2]
    del words[place : place + 2]
    return Path(folder).resolve()


@functools.cache
def parses(name: str, words: tuple[str, ...], config_dir: Path | None) -> bool:
    """Whether a configuration composes and parses; what does not raises."""
    config = {"train": TrainConfig, "evaluate": EvaluateConfig}[name]
    return config.parse(compose(name, words, config_dir)) is not None


def check(command: Command) -> None:
    """Check a command's words without running it."""
    name, words = script(command.words)
    words = filled(words)
    if name and "--help" in words:
        return
    if name:
        config_dir = without_config_dir(words)
        for job in jobs([word for word in words if word not in ("-m", "--multirun")]):
            assert parses(name, job, config_dir)
    elif words[0] == "gptstar" and words[1] not in SCRIPTS:
        options = build_parser().parse_args(words[1:])
        if words[1] in ("prepare", "config", "plan"):
            overrides = [word for word in options.overrides if not word.startswith(("part=", "verify="))]
            assert parses("train", (*overrides, "data.shards=x"), options.config_dir)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [extra for word in words for group in re.findall(r"\[(.+)\]", word) for extra in group.split(",")]
        assert set(asked) <= extras.keys()
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()


def run(command: Command, number: int) -> None:
    """Run a command in this process at a small size."""
    name, words = script(command.words)
    if name == "train":
        config_dir = without_config_dir(words)
        given = list(words)
        if not any(re.match(r"data(\.shards|\.files)?=", word) for word in given):
            given += ["data=local", "data.files=text/*/*.jsonl.zst"]
        small = [
            word for word in SIZE if not (word.startswith("model.") and any("init_from=" in each for each in given))
        ]
        run_here([*given, *small, _output(words, number)], config_dir=config_dir)
    elif name == "evaluate":
        study = next((word for word in words if word.startswith("evaluation=")), "")
        lengths = (
            ["evaluation.context_lengths=[16,32]"]
            if study in ("evaluation=length", "evaluation=heads")
            else ["evaluation.limit=2"]
        )
        evaluate_here(*words, *MORE[name], *lengths, _output(words, number))
    else:
        assert words[0] == "gptstar", f"{command.text}: neither run nor given a reason"
        expanded = [each for word in words for each in (sorted(glob.glob(word)) or [word])]
        main([*expanded[1:], *MORE.get(words[1], ())])


def _output(words: list[str], number: int) -> str:
    """The output that a command names, unless it is there already: then, as without a name, one of its own."""
    named = next((word for word in words if word.startswith("output=")), f"output=ran/{number}")
    return f"output=ran/{number}" if Path(named.removeprefix("output=")).exists() else named


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page not in BY_ANOTHER_TEST])
def test_commands_run_or_have_a_reason(page: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(page, place)
    for number, command in enumerate(commands(page)):
        try:
            check(command)
            if reason(command) is None:
                run(command, number)
        except (Exception, SystemExit) as error:
            said = capsys.readouterr().err.strip() or error
            raise AssertionError(f"{page}: {command.text}\n{said}") from error


def test_every_reason_is_needed() -> None:
    used = {reason(command) for page in PAGES if page not in BY_ANOTHER_TEST for command in commands(page)}
    assert set(REASONS) - used == set()


def test_a_wrong_word_is_found(place: Path) -> None:
    for words in (
        "python train.py optimizer.learning_rat=1",
        "python train.py -m seed=0,1 model.positions=alibi,rotry",
        "python evaluate.py checkpoint=x evaluation.limits=3",
        "gptstar runs --sorted loss",
        "make tests",
        "pip install 'gptstar[searching]'",
    ):
        with pytest.raises((Exception, SystemExit)):
            check(Command("page", words, tuple(words.replace("'", "").split())))
