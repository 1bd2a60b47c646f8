"""Comparisons of speed on a GPU, as far as they can be tested without one: plan, time limit and tables."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from rich.console import Console

import check
import run as bench
from gptstar.training.hardware import PEAK_BF16_FLOPS
from speed import engine, report, store
from speed.comparison import Comparison, Entry
from speed.comparisons import comparisons
from speed.engine import SKIPPED, Measured, Outcome, measure
from speed.job import timed
from speed.machine import limits
from speed.scale import Scale
from support.comparison import TINY, results

H200 = {"device": "NVIDIA H200", "driver": "driver 580.1, CUDA 13.0", "processor": "none"}
H200 |= dict.fromkeys(("cores", "memory", "torch", "threads", "python"), "1")
PLAN = {each.name: each for each in comparisons("cuda", Scale.of("cuda"))}


class RecordingWorker:
    """A stand-in for a worker that does nothing but record its instructions."""

    said: ClassVar[list[str]] = []

    def __init__(self, build: str, *_: object) -> None:
        self.name, self.about = build, {"tokens": 32.0, "flops": 1e9, "weight_bytes": 0.0, "n_params": 1e6}
        self.said.append(f"start {build}")

    def wait_until_ready(self) -> None:
        pass

    def build(self, patience: float = 0.0) -> None:
        self.said.append(f"build {self.name}")

    def round(self) -> dict[str, float]:
        return {"seconds": 1.0, "cpu_seconds": 1.0, "peak": 1e9, "gemm_bf16": 1e12}

    def close(self) -> None:
        self.said.append(f"close {self.name}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(engine, "Worker", RecordingWorker)
    monkeypatch.setattr(RecordingWorker, "said", [])
    return RecordingWorker.said


def of_names(name: str, *entries: str) -> Comparison:
    return Comparison(name, "", tuple(Entry(each, each, {}) for each in entries), entries[0], "gemm_bf16", rounds=5)


# The plan


def test_the_most_valuable_comparisons_come_first() -> None:
    assert list(PLAN) == [
        *("training", "training-gpt303", "loop", "decoding"),
        *("training-peers", "shapes", "training-batch", "prefill", "decoding-compiled"),
    ]
    quick = bench.plan(bench.parser().parse_args(["--device", "cuda", "--quick", "--list"]))
    assert [each.name for each, _ in quick] == list(PLAN)[:4]
    assert bench.SECONDS["cuda"] == 280


@pytest.mark.parametrize("name", PLAN)
def test_claims_are_of_entries_that_exist(name: str) -> None:
    names = [entry.name for entry in PLAN[name].entries]
    assert len(set(names)) == len(names)
    assert {PLAN[name].baseline, *(each.of for each in PLAN[name].claims)} <= set(names)
    assert {each.over for each in PLAN[name].claims} <= {None, *names}
    assert all(entry.arguments["device"] == "cuda" for entry in PLAN[name].entries)


@pytest.mark.parametrize(("name", "gb", "batch"), [("training", 14.0, 64), ("training-gpt303", None, 32)])
def test_ours_is_held_to_the_prototype_and_to_compiled_nanogpt(name: str, gb: float | None, batch: int) -> None:
    bounds = {(each.quantity, each.over): (each.floor, each.aim) for each in PLAN[name].claims}
    assert bounds["speed", "prototype"] == (0.97, 1.12)
    assert bounds["speed", "nanoGPT-shaped, compiled"] == (1.1, 1.25)
    assert bounds["first", None] == (60, None)
    assert bounds["peak", None] == (gb, None)
    sizes = {(each.arguments["batch"], each.arguments["context"]) for each in PLAN[name].entries}
    assert sizes == {(batch, 512)}
    params = [each.arguments["config"].n_params for each in PLAN[name].entries]
    assert max(params) / min(params) < 1.03


def test_the_floors_of_the_loop_and_of_decoding() -> None:
    (loop,) = PLAN["loop"].claims
    assert (loop.of, loop.over, loop.floor) == ("train.py", "bare steps", 0.97)
    shares = {each.of: each.floor for each in PLAN["decoding"].claims if each.quantity == "share"}
    assert shares == {"gpt127": 0.35, "gpt303": 0.5}
    assert [each.arguments.get("batch", 1) for each in PLAN["decoding"].entries] == [1, 1, 8, 1]


def test_peers_are_compiled_as_their_users_would_and_shapes_have_equal_tokens() -> None:
    compiled = {each.name: each.arguments.get("compiled", False) for each in PLAN["training-peers"].entries}
    assert {name for name, is_compiled in compiled.items() if is_compiled} == {
        "Hugging Face GPT-2, compiled",
        "litgpt pythia-160m, compiled",
    }
    sizes = [(each.arguments["batch"], each.arguments["context"]) for each in PLAN["shapes"].entries]
    assert sizes == [(64, 512), (64, 512), (32, 1024)]
    batches = {(each.arguments["config"].d_model, each.arguments["batch"]) for each in PLAN["training-batch"].entries}
    assert batches == {(1024, 64), (1024, 128), (1536, 32), (1536, 128)}


def test_the_sizes_of_a_cpu_are_unchanged() -> None:
    scale = Scale.of("cpu")
    assert (scale.batch, scale.large_batch, scale.n_new, scale.loop_steps) == (2, 8, 32, 4)
    assert Scale.of("cpu", long=True).lengths[-1] == 32768


# A round on a GPU, and its limits


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    return calls


def test_a_round_on_a_gpu_is_warm_and_gives_memory_back(
    pretended_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()
    durations = iter([30.0, 0.2, 0.2, 0.1, *[0.1] * 99])  # the first compiles
    now = [0.0]

    def step() -> None:
        now[0] += next(durations)
        next(clock)

    monkeypatch.setattr("speed.job.time", SimpleNamespace(perf_counter=lambda: now[0]))
    seconds = timed(step, "cuda")
    assert (next(clock), seconds.first, seconds.steps) == (4, pytest.approx(30.0), 5)
    assert seconds() == pytest.approx(0.1)
    assert next(clock) == 5 + 1 + 5  # the first `next` counted too, then one step untimed
    assert pretended_gpu == ["emptied"] * 2


def test_a_gpu_s_limits_are_large_products_and_a_copy(
    pretended_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from speed import machine

    assert machine.GEMM_SHAPES["cuda"] == ((8192, 8192, 8192),)
    monkeypatch.setitem(machine.GEMM_SHAPES, "cuda", ((64, 64, 64),))
    monkeypatch.setitem(machine.BYTES, "cuda", 2**16)
    for name in ("randn", "ones"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, made=made, **k: made(*a, **k | {"device": "cpu"}))
    monkeypatch.setattr("speed.machine._best", lambda action, device, in_a_row=1: action() is None or 0.5)
    rates = limits(("gemm_bf16", "read_bandwidth"), "cuda").round()
    assert rates == {"gemm_bf16": 20 * 2 * 64**3 / 0.5, "read_bandwidth": 2 * 2**16 / 0.5}


# The budget


def test_a_budget_of_nothing_skips_and_names_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: list[str]
) -> None:
    monkeypatch.setattr(Scale, "of", lambda *_, **__: TINY)
    store.save(results([1.0], [2.0]), tmp_path / store.FILE)
    before = (tmp_path / store.FILE).read_bytes()
    bench.main(["--seconds", "0", "--output", str(tmp_path)])
    names = "; ".join(each.name for each in comparisons("cpu", TINY))
    assert f"skipped after 0 seconds: {names}\n" in capsys.readouterr().out
    assert (tmp_path / store.FILE).read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [store.FILE]
    assert told == []
    with pytest.raises(SystemExit, match="--seconds -1 is negative"):
        bench.main(["--seconds", "-1"])


def test_after_the_deadline_nothing_is_built_and_few_rounds_are_measured(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    clock = iter([0.0, 9.0, 11.0, *[12.0] * 9])
    monkeypatch.setattr("speed.engine.time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = measure(of_names("one", "a", "b", "c"), rounds=5, device="cuda", machine=H200, deadline=10.0)
    assert [len(each.seconds) for each in found.entries.values()] == [3, 3, 0]
    assert [each.failure for each in found.entries.values()] == [None, None, SKIPPED]
    assert "build c" not in told
    assert sorted(each for each in told if "close" in each) == ["close a", "close b", "close c", "close machine.limits"]


def test_the_next_comparison_starts_while_one_builds_and_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "describe", lambda _: H200)
    monkeypatch.setattr(bench, "data_sheet_peak", lambda _: PEAK_BF16_FLOPS["H200"])
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    chosen = [(of_names(name, name), 2) for name in ("training", "shapes", "prefill")]
    clock: Iterator[float] = iter([0.0, 0.0, 1.0, 2.0, 3.0, 90.0, *[91.0] * 9])
    monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: 0.0))
    now = bench.run(chosen, device="cuda", folder=tmp_path, console=Console(), seconds=100)
    assert list(now["cuda"]) == ["training", "shapes"]
    assert "skipped after 100 seconds: prefill" in capsys.readouterr().out
    assert told.index("start shapes") < told.index("build training") < told.index("build shapes")
    assert told[-1] == "close prefill"
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


# Tables and the check


def outcome() -> Outcome:
    about = {"tokens": 100.0, "flops": 1e12, "weight_bytes": 0.0, "n_params": 1e8, "held": 0.0, "first_step": 47.0}
    entries = {
        name: Measured(dict(about), [seconds] * 3, [1.0] * 3, peak=gb * 1e9)
        for name, seconds, gb in (
            ("ours", 0.2, 9.7),
            ("prototype", 0.25, 11.5),
            ("nanoGPT-shaped, compiled", 0.3, 22.8),
        )
    }
    return Outcome("2026-11-27", dict(H200), [750e12] * 4, 1000e12, entries)


def test_both_devices_stand_side_by_side_and_a_gpu_s_table_has_both_shares(tmp_path: Path) -> None:
    store.save(results([1.0] * 3, [2.0] * 3) | {"cuda": {"training": outcome()}}, tmp_path / store.FILE)
    report.write(store.load(tmp_path / store.FILE), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "\n## CPU: none" in text
    assert "\n## GPU: NVIDIA H200, driver 580.1, CUDA 13.0, beside none" in text
    assert "| training | ours against prototype | 1.25 | ≥ 0.97 | ≥ 1.12 | aim |" in text
    assert "| training | ours, MFU | 0.50 | ≥ 0.4 | ≥ 0.5 | aim |" in text
    assert "| training | peak memory, ours, GB | 9.70 | ≤ 14 |  | floor |" in text
    assert "| training | first step, ours, seconds | 47.00 | ≤ 60 |  | floor |" in text
    assert "| ours | 100M | 500 | 1.25 | 67% | 50% | 200.00 | 47 | 9.70 |" in text
    assert "GEMM peak, bfloat16, 8192³: 750 TFLOP/s" in text
    assert "3 rounds, 2026-11-27." in text


@pytest.mark.slow
def test_the_check_compares_neither_seconds_nor_what_no_time_was_left_for() -> None:
    old, slow, late = (outcome() for _ in range(3))
    slow.entries["ours"].about["first_step"] = 900.0
    late.entries["ours"] = Measured(failure=SKIPPED)
    for new in (slow, late):
        compared = list(check.compare({"cuda": {"training": old}}, {"cuda": {"training": new}}, "cuda"))
        assert {each.claim.quantity for each in compared} == {"speed", "share", "mfu", "peak"}
        assert not any(each.fell for each in compared)
    slow.entries["ours"].seconds = [0.3] * 3
    compared = list(check.compare({"cuda": {"training": old}}, {"cuda": {"training": slow}}, "cuda"))
    assert {each.claim.quantity for each in compared if each.fell} == {"speed", "share", "mfu"}


def test_evaluation_is_named_with_its_own_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"--only evaluation has a separate script: python benchmarks/evaluation.py"):
        bench.main(["--only", "evaluation"])
    bench.main(["--device", "cuda", "--list"])
    assert "evaluation: python benchmarks/evaluation.py" in capsys.readouterr().out
