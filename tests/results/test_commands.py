"""Commands as they would be typed, and run by a shell to the same words."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.results.commands import as_typed
from support.runs import run_script


def job(folder: str, *words: str) -> str:
    return shlex.join(["gptstar", "train", *words, f"output='{folder}'", "hydra.mode=RUN"])


def test_jobs_that_fill_a_grid_are_one_sweep() -> None:
    jobs = [
        job(
            f"/runs/search/learning_rate-{rate}_seed-{seed}",
            "data=local",
            f"optimizer.learning_rate={rate}",
            f"seed={seed}",
        )
        for rate in ("0.0003", "0.001")
        for seed in (0, 1)
    ]
    (sweep,) = as_typed(jobs)
    assert "'" not in sweep
    assert " ".join(sweep.replace("\\\n", "").split()) == (
        "gptstar train -m data=local optimizer.learning_rate=0.0003,0.001 seed=0,1 output=/runs/search"
    )
    assert len(as_typed(jobs[:3])) == 3  # a hole in the grid
    assert as_typed([jobs[0], jobs[0]]) == as_typed(jobs[:1])


def test_the_names_that_a_sweep_gives_its_jobs_are_left_out() -> None:
    (command,) = as_typed([job("/runs/search/seed-0", "seed=0", "tracker.group='search'", "tracker.run_name='seed-0'")])
    assert "tracker" not in command
    (command,) = as_typed([job("/runs/search/seed-0", "seed=0", "tracker.group=mine", "tracker.run_name='best'")])
    assert "tracker.group=mine tracker.run_name=best" in command


@pytest.mark.slow
def test_what_a_sweep_recorded_is_shown_as_one_command(overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    words = overrides("total_steps=2", "schedule.warmup_steps=1", "name='null'", "tags=[a]", output="sweep")
    done = run_script("train.py", ["-m", *words, "seed=0,1"])
    assert done.returncode == 0, done.stderr
    descriptions = sorted((tmp_path / "sweep").glob("*/versions.json"))
    recorded = [json.loads(each.read_text())["command"] for each in descriptions]
    assert len(recorded) == 2
    (sweep,) = as_typed(recorded)
    typed = shlex.split(sweep.replace("\\\n", ""))
    assert typed[:3] == ["gptstar", "train", "-m"]
    assert {"seed=0,1", "name='null'", "tags=[a]", f"output={tmp_path / 'sweep'}"} <= set(typed)
    assert {word.partition("=")[0] for word in typed[3:]} == {
        *(word.partition("=")[0] for word in words),
        *("seed", "experiment"),
    }


def test_long_commands_are_wrapped() -> None:
    (command,) = as_typed([job("/runs/a", *(f"model.some_key_{number}=value" for number in range(20)))])
    lines = command.split("\n")
    assert len(lines) > 5
    assert all(len(line) <= 90 for line in lines)
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("data.files=TEXT/*/*.jsonl", "data.files='TEXT/*/*.jsonl'"),
        ("evaluation.tasks=[piqa,arc]", "evaluation.tasks='[piqa,arc]'"),
        ("output='/runs/a-b_c.d'", "output=/runs/a-b_c.d"),
        ("name='with space'", "name=\"'with space'\""),
        ("name='text'", "name=text"),
        ("name='v1.2'", "name=v1.2"),
        ("name='null'", "name=\"'null'\""),
        ("name='True'", "name=\"'True'\""),
        ("name='1e-3'", "name=\"'1e-3'\""),
        ("name='12_000'", "name=\"'12_000'\""),
        ("name='-inf'", "name=\"'-inf'\""),
        ("name=''", "name=\"''\""),
        ("title=it's $5", "title='it'\"'\"'s $5'"),
        ("+a.b=~/x", "+a.b=~/x"),
        ("a b", "'a b'"),
    ],
)
def test_a_word_has_only_the_quotes_that_it_takes(word: str, typed: str) -> None:
    (command,) = as_typed([shlex.join(["echo", word])])
    assert command == f"echo {typed}"


def test_a_shell_reads_the_same_words() -> None:
    words = [
        "data.files=a/*/b",
        "x=[1,2]",
        "name='with space'",
        "title=it's $5 `now`",
        "back=\\",
        "plain=1",
        "a;b",
        'q="',
    ]
    (command,) = as_typed([shlex.join(["printf", "%s\\n", *words])])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words


def test_what_is_no_command_line_stays_as_it_is() -> None:
    assert as_typed(["", "python train.py x='"]) == ["python train.py x='"]
