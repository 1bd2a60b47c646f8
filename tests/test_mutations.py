"""Configuration values and command lines that were changed at random: they work, or are refused in one line."""

import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from gptstar.cli import main
from gptstar.config import TrainConfig
from gptstar.errors import Refusal
from gptstar.keys import valid_keys
from support.mutations import refusal_of
from support.runs import SMALL, run_here

VALUES = [
    *("null", "true", "false", "0", "1", "-1", "3", "7", "3.5", "1e-3", "1000000000", "1000000000000000000"),
    *(
        "9223372036854775808",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "",
        "''",
        "' '",
        "alibi2",
        "none",
        "auto",
        "~",
        "[]",
        "[3]",
    ),
    *(
        "[a,b]",
        "{}",
        "{a:3}",
        "{kind:rotary}",
        "${nothing}",
        "${seed}",
        "a=b",
        "a,b",
        "x" * 1_000,
        "日本",
        "\\n",
        "/",
        ".",
    ),
    *("1_000", "0x10", "'3'", "[1,[2]]", "/nowhere/x", "1:30", "2001-01-01", "[null]", "{a:{b:[1]}}", "???", "1" * 400),
    *("[" * 30, "]" * 3, "'", '"', "\\", "a b", "$", "@x", "--help", "-", "[nan]", "[-1]", "[0]", "rotary", "learned"),
]
"""Words that somebody may type after `KEY=`."""

ODD_WORDS = [
    *(
        "",
        "-",
        "--",
        "--json",
        "--seed",
        "-n",
        "--help",
        "nowhere",
        "/",
        ".",
        "x" * 1_000,
        "日本",
        "-1",
        "0",
        "1e9",
        "nan",
    ),
    *(
        "=",
        "a=b",
        "*",
        "[",
        "\x1b[31m",
        "--tokens=99999999999999",
        "-n=1000000000",
        "--stop=",
        "--top-p=2",
        "/dev/null",
    ),
]

Attempt = Callable[[Sequence[str]], str]


@pytest.fixture
def attempt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Attempt:
    """Run `gptstar` with some words: the line that refuses them, or nothing."""
    monkeypatch.chdir(tmp_path)

    def run(words: Sequence[str]) -> None:
        code: object = 0
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr().err.strip()
        if code == 1:
            assert said.startswith("error: "), said
            raise Refusal(said)
        assert code in (0, 2), said
        if code == 2:  # argparse's usage and its line
            raise Refusal(said.splitlines()[-1])

    return lambda words: refusal_of(repr(words)[:600], partial(run, words))


def changed_values(draw: random.Random, keys: Sequence[str]) -> list[str]:
    """Overrides with odd values for real keys; one of them is sometimes misspelt or given twice."""
    words = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        key = draw.choice(keys).replace("*", draw.choice(["x", "a", "new"]))
        if draw.random() < 0.05:
            key = key.replace(draw.choice(key), "", 1)
        sign = draw.choice(["", "", "", "+", "++", "~"]) if draw.random() < 0.2 else ""
        words.append(f"{sign}{key}={draw.choice(VALUES)}")
    if draw.random() < 0.2:
        words.append(
            draw.choice(["experiment=gpt127", "model=gpt2_small", "hardware=fsdp", "optimizer=muon", "data=local"])
        )
    return words


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("begin", "end"), [(0, 12), pytest.param(12, 3060, marks=pytest.mark.slow)])
def test_odd_values_are_refused_or_work(begin: int, end: int, attempt: Attempt) -> None:
    keys, n_refused = valid_keys(TrainConfig), 0
    for seed in range(begin, end):
        draw = random.Random(seed)
        words = changed_values(draw, keys)
        command = draw.choice(["config", "plan"])
        n_refused += bool(attempt([command, "data.shards=x", *words]))
    assert n_refused > (end - begin) // 4


def changed_words(draw: random.Random, words: Sequence[str]) -> list[str]:
    """A command line with one or two words dropped, doubled, swapped, cut or replaced."""
    changed = list(words)
    for _ in range(draw.choice([1, 1, 2])):
        place = draw.randrange(1, len(changed)) if len(changed) > 1 else 0
        match draw.randrange(6):
            case 0:
                del changed[place]
            case 1:
                changed.insert(place, draw.choice(ODD_WORDS))
            case 2:
                changed.append(draw.choice(changed))
            case 3:
                changed[place] = changed[place][: draw.randrange(1 + len(changed[place]))]
            case _:
                changed[place] = draw.choice(ODD_WORDS)
        if not changed:
            return ["runs"]
    return changed


@pytest.fixture(scope="module")
def trained(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and its text and shards."""
    folder = tmp_path_factory.mktemp("trained")
    few = ("total_steps=6", "schedule.warmup_steps=1", "validate_every=3", f"data.shards={folder / 'shards'}")
    run_here([*SMALL, "data=local", f"data.files={text}", *few, f"output={folder / 'run'}"])
    main(["export", str(folder / "run"), str(folder / "exported")])
    return folder


COMMANDS = [
    "generate run --prompt the --tokens 4 -n 2 --seed 3 --json",
    "generate run/best.ckpt --greedy --tokens 3 --stop a --repetition-penalty 1.3",
    "generate run --prompt a --temperature 0.7 --top-k 5 --top-p 0.9 --typical-p 0.9 --probabilities",
    "export run folder --context-length 32 --name mine --licence mit",
    "consolidate run one.ckpt --weights-only",
    "import exported other.ckpt --tokenizer exported/tokenizer.json",
    "runs run --json",
    "runs . run",
    "report run --output report --title some",
    "data inspect shards --samples 2",
    "data verify shards",
    "data merge shards",
    "plan model.n_layers=2 --device H100 --share 0.4",
    "config model.n_layers=2 data.shards=shards",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("begin", "end"), [(0, 1), pytest.param(1, 203, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_odd_words_are_refused_or_work(
    command: str, begin: int, end: int, trained: Path, attempt: Attempt, tmp_path: Path
) -> None:
    for seed in range(begin, end):
        folder = shutil.copytree(trained, tmp_path / "work", symlinks=True)
        with pytest.MonkeyPatch.context() as here:
            here.chdir(folder)
            attempt(changed_words(random.Random(f"{command}{seed}"), command.split()))
        shutil.rmtree(folder)
