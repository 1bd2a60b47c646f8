"""Comparisons of speed: entries take turns, and figures and checks are right."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import check
import run as bench
from gptstar.errors import ConfigError, DataError
from speed import report, store
from speed.comparison import Claim, Comparison, Entry
from speed.comparisons import comparisons
from speed.engine import measure
from speed.figures import Figure, figure, median, reached
from speed.scale import Scale
from speed.worker import Worker, WorkerError
from support import ROOT
from support.comparison import ALL, GPT2, STAR, TINY, outcome, results


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speed.job.LEAST_SECONDS", 0.0)


COMPARISON = Comparison(
    "two",
    "Two of one kind.",
    (
        Entry(
            "ours",
            "peers.original.training",
            {"config": STAR, "precision": "float32", "batch": 1, "context": 7, "device": "cpu"},
        ),
        Entry("absent", "peers.lightning_gpt.training", {"config": GPT2, "batch": 1, "context": 7, "device": "cpu"}),
        Entry(
            "broken",
            "peers.nanogpt.training",
            {"config": STAR, "precision": "float32", "batch": 1, "context": 7, "device": "cpu"},
        ),
    ),
    baseline="ours",
    limit="gemm_float32",
    rounds=2,
    claims=(Claim("speed", "ours", "absent", 1.0),),
)


@pytest.mark.slow
def test_entries_are_asked_in_turn_and_failures_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Nowhere to find litgpt, whether or not it is installed here.
    (tmp_path / "litgpt").mkdir()
    (tmp_path / "litgpt/__init__.py").write_text("raise ModuleNotFoundError('gone', name='litgpt.model')")
    monkeypatch.syspath_prepend(tmp_path)
    told: list[str] = []
    found = measure(COMPARISON, rounds=2, device="cpu", machine={}, advance=told.append)
    assert told == ["ours", "absent", "broken"] * 3  # built, then two rounds
    ours, absent, broken = found.entries.values()
    assert len(ours.seconds) == len(ours.cpu_seconds) == 2
    assert 1e8 < ours.about["held"] <= ours.peak < 1e10
    assert absent.failure is not None
    assert absent.failure.startswith("not installed: pip install")
    assert broken.failure is not None
    assert "AssertionError" in broken.failure
    assert len(found.limit) == 3
    assert min(found.limit) > 1e8
    text = report.entries_table(COMPARISON, found).markdown()
    assert "not installed: pip install" in text


@pytest.mark.slow
def test_a_process_that_is_out_of_memory_says_so() -> None:
    arguments = {"config": STAR, "precision": "float32", "device": "cpu"}
    small, large = (
        Worker("peers.original.reading", arguments | {"length": length}, 5 * 10**9) for length in (67, 16384)
    )
    small.build()
    small.close()
    with pytest.raises(WorkerError, match=r"^out of memory$"):  # a layer's biases are 4.3 GB
        large.build()


@pytest.mark.slow
def test_a_run_goes_on_step_by_step(cache: Path) -> None:
    (loop,) = (each for each in ALL if each.name == "loop")
    found = measure(loop, rounds=3, device="cpu", machine={})
    run, bare = found.entries.values()
    assert run.failure is bare.failure is None
    assert len(run.seconds) == len(bare.seconds) == 3
    assert all(1e-4 < seconds < 10 for seconds in run.seconds + bare.seconds)


# Figures


def test_the_median_s_interval_holds_with_95_percent() -> None:
    found = median([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0])
    assert (found.value, found.low, found.high) == (5.0, 2.0, 8.0)  # the 2nd and 8th of 9: 96.1 %
    few = median([3.0, 1.0, 2.0])
    assert (few.value, few.low, few.high) == (2.0, 1.0, 3.0)


def test_ratios_are_of_paired_rounds() -> None:
    found = outcome(ours=[1.0, 2.0, 4.0], theirs=[2.0, 4.0, 10.0])
    speed = figure(Claim("speed", "ours", "theirs"), found, COMPARISON)
    assert speed is not None
    assert (speed.value, speed.low, speed.high) == (2.0, 2.0, 2.5)
    token = figure(Claim("token", "theirs", "ours"), found, COMPARISON)
    assert token == speed
    memory = figure(Claim("memory", "ours", "theirs"), found, COMPARISON)
    assert memory is not None
    assert memory.value == 0.5
    of_limit = figure(Claim("share", "ours"), found, COMPARISON)
    assert of_limit is not None
    assert of_limit.value == pytest.approx(10 / 2.0 * 100 / 1e4)
    assert figure(Claim("mfu", "ours"), found, COMPARISON) is None
    by_maker = figure(Claim("mfu", "ours"), replace(found, data_sheet=1e5), COMPARISON)
    assert by_maker is not None
    assert by_maker.value == pytest.approx(of_limit.value / 10)


def test_growth_is_a_power_of_the_length() -> None:
    found = outcome(a=[1.0], b=[2.0], c=[4.0])
    for number, each in enumerate(found.entries.values()):
        each.about["tokens"] = 10.0 * 2**number
        each.peak = each.about["held"] + 50.0 * 4**number
    entries = tuple(Entry(name, "", {}, series="s") for name in "abc")
    power = figure(Claim("growth", "s"), found, replace(COMPARISON, entries=entries))
    assert power is not None
    assert power.value == pytest.approx(2.0)
    found.entries["c"].failure = "out of memory"
    assert figure(Claim("growth", "s"), found, replace(COMPARISON, entries=entries)) is None


def test_entries_differ_in_their_allocator_only_where_that_is_said() -> None:
    for comparison in comparisons("cpu", Scale.of("cpu")):
        assert len({each.keeps_memory for each in comparison.entries}) == 1 + (" as run" in comparison.text), comparison


@pytest.mark.parametrize(("value", "said"), [(0.5, "aim"), (0.6, "floor"), (0.7, "missed")])
def test_less_is_better_of_memory(value: float, said: str) -> None:
    assert reached(Claim("memory", "a", "b", 0.65, 0.55), value) == said
    assert reached(Claim("speed", "a", "b", 1 / 0.65, 1 / 0.55), 1 / value) == said
    assert reached(Claim("speed", "a", "b"), value) == ""


# What is written, and the check


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / store.FILE
    store.save(results([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]), path)
    assert store.load(path) == results([1.0, 1.1, 0.9], [2.0, 2.1, 1.9])
    report.write(store.load(path), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| prefill | ours against Hugging Face GPT-2 | 2.00 (1.91–2.11) | ≥ 1.25 | ≥ 1.5 | aim |" in text
    for content in (b'{"cpu": 3}', b"\xff\xfe", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no record of `make bench`"):
            store.load(path)
    with pytest.raises(DataError, match="Is a directory"):
        store.load(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "fell"), [([2.0, 2.1, 1.9], False), ([1.8, 1.85, 1.9], False), ([1.4, 1.45, 1.5], True)]
)
def test_the_check_names_what_fell(
    theirs: list[float], fell: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    store.save(results([1.0, 1.0, 1.0], [1.9, 2.0, 2.1]), old)
    store.save(results([1.0, 1.0, 1.0], theirs), new)
    arguments = [str(new), "--against", str(old)]
    if fell:
        with pytest.raises(SystemExit, match=r"prefill: ours against Hugging Face GPT-2, 2\.00"):
            check.main(arguments)
    else:
        check.main(arguments)
    assert "ratios" in capsys.readouterr().out


@pytest.mark.slow
def test_a_peer_that_is_absent_is_no_fall_of_ours_but_a_failure_of_ours_is(tmp_path: Path) -> None:
    old = results([1.0] * 3, [2.0] * 3)
    (without_peer,) = check.compare(old, results([1.0] * 3, []), "cpu")
    assert not without_peer.fell
    (without_ours,) = check.compare(old, results([], [2.0] * 3), "cpu")
    assert without_ours.fell


@pytest.mark.parametrize(
    ("claim", "before", "now", "fell"),
    [
        (Claim("memory", "a", "b"), 0.5, 0.51, False),
        (Claim("memory", "a", "b"), 0.5, 0.55, True),
        (Claim("memory", "a", "b"), 0.5, 0.3, False),
        (Claim("growth", "a"), -0.1, 0.05, False),
        (Claim("growth", "a"), 1.0, 2.0, True),
        (Claim("share", "a"), 0.7, 0.6, True),
    ],
)
def test_worse_is_less_or_more_as_the_claim_has_it(claim: Claim, before: float, now: float, fell: bool) -> None:
    figures = (Figure(each, each, each) for each in (before, now))
    assert check.Compared("", claim, *figures, excused=False).fell is fell


def test_names_choose_comparisons() -> None:
    assert [each.name for each in bench.choose(ALL, "training")] == [
        "training",
        "training-as-run",
        "training-compiled",
        "training-memory",
        "training-float32",
    ]
    assert [each.name for each in bench.choose(ALL, "loop,shapes-float32")] == ["shapes-float32", "loop"]
    with pytest.raises(ConfigError, match="--only speeed: there is no such comparison: choose from training, "):
        bench.choose(ALL, "speeed")
    quick = bench.plan(bench.parser().parse_args(["--quick"]))
    assert {each.name for each, _ in quick} == {"training", "prefill", "decoding", "loop"}


@pytest.mark.slow
def test_a_run_from_its_command_to_its_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Scale, "of", lambda *_, **__: TINY)
    kept = results([1.0], [2.0])
    store.save(kept, tmp_path / store.FILE)
    bench.main(["--only", "long-float32", "--rounds", "1", "--output", str(tmp_path)])
    written = store.load(tmp_path / store.FILE)["cpu"]
    assert list(written) == ["prefill", "long-float32"]
    assert written["prefill"] == kept["cpu"]["prefill"]
    assert [each.about["tokens"] for each in written["long-float32"].entries.values()] == [67, 131]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| long-float32 | a token, ours, 131 of ours, 67 |" in text
    assert "memory to read as T^" in text
    assert "ours, 131" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "error: --only nothing: there is no such comparison"),
        (["--rounds", "0"], "error: --rounds 0 is below 1"),
        pytest.param(
            ["--device", "cuda"],
            "error: --device cuda, but PyTorch sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_refusals_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert str(stopped.value).startswith(said)


def test_published_results_are_of_comparisons_that_exist() -> None:
    path = ROOT / "benchmarks" / store.FILE
    if not path.exists():
        pytest.skip("nothing has been published")
    for device, of in store.load(path).items():
        assert {comparison.name for comparison, _ in report.pairs({device: of}, device)} == set(of)
