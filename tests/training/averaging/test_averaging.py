"""Weight averaging: definition, resumed runs, metrics, and export."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gptstar
from gptstar.checkpoint.format import read_file, write
from gptstar.checkpoint.huggingface.read import read_huggingface
from gptstar.checkpoint.identity import identity
from gptstar.checkpoint.read import find, read
from gptstar.cli import main
from gptstar.data.config import DataConfig
from gptstar.data.order.training_data import validation_data
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import CheckpointError
from gptstar.model import GPTConfig
from gptstar.training.averaging import AVERAGING
from gptstar.training.plan import Workload
from support import ROOT
from support.runs import assert_goes_on_bitwise, assert_same_run, evaluate_here, recorded, run_here, wait_for

Overrides = Callable[..., list[str]]
Trained = Callable[..., Path]

EMA = ("averaging=ema", "averaging.decay=0.8")
TAIL = ("averaging=tail", "averaging.fraction=0.4")
EACH_STEP = ("total_steps=12", "checkpoint_every=1", "checkpoint_keep=20", "validate_every=6")


def steps(folder: Path) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Return the weights and the averaged weights after each step."""
    read_all = [read_file(path) for path in folder.glob("step-*.ckpt")]
    return {each.training.step: (each.weights, each.averaged) for each in read_all}


def weighted(saved: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]], shares: dict[int, float]) -> dict:
    """Return the weighted sum, in float64, of the weights after some steps."""
    total = sum(shares.values())
    names = next(iter(saved.values()))[0]
    return {name: sum(saved[i][0][name].double() * share / total for i, share in shares.items()) for name in names}


@pytest.mark.parametrize("begin", [0, 3])
def test_an_ema_is_the_sum_that_defines_it(begin: int, trained_once: Trained) -> None:
    saved = steps(trained_once(*EACH_STEP, *EMA, f"averaging.begin={begin}"))
    assert sorted(saved) == list(range(1, 13))
    for step, (_, averaged) in saved.items():
        expected = weighted(saved, {i: 0.8 ** (step - i) for i in range(begin + 1, step + 1)}) if step > begin else {}
        torch.testing.assert_close(
            {k: v.double() for k, v in averaged.items()}, expected, rtol=0, atol=3e-7
        )  # of float32 near 1
    assert all(tensor.dtype == torch.float32 for tensor in saved[12][1].values())


def test_a_tail_is_the_uniform_mean_of_the_last_steps(trained_once: Trained) -> None:
    folder = trained_once(*EACH_STEP, *TAIL)
    saved = steps(folder)
    assert [step for step in sorted(saved) if saved[step][1]] == [8, 9, 10, 11, 12]  # two fifths of twelve
    for step in range(8, 13):
        expected = weighted(saved, dict.fromkeys(range(8, step + 1), 1.0))
        torch.testing.assert_close(
            {k: v.double() for k, v in saved[step][1].items()}, expected, rtol=0, atol=3e-7
        )  # of float32 near 1
    assert list(recorded(folder, "averaged/loss")) == [12]  # of the two validations


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16_weights"])
def test_training_is_as_without_an_average(precision: str, overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides(f"hardware.precision={precision}", output="none"))
    run_here(overrides(f"hardware.precision={precision}", *EMA))
    for name in ("train/loss", "validation/loss"):
        assert recorded(tmp_path / "run", name) == recorded(tmp_path / "none", name)
    with_average, without = read(tmp_path / "run/last.ckpt"), read(tmp_path / "none/last.ckpt")
    torch.testing.assert_close(with_average.weights, without.weights, rtol=0, atol=0)
    torch.testing.assert_close(with_average.training.optimizer, without.training.optimizer, rtol=0, atol=0)
    assert not without.averaged


@pytest.mark.parametrize("words", [EMA, (*TAIL, "averaging.begin=7")])
def test_a_run_that_stops_and_goes_on_has_the_same_average(
    words: tuple[str, ...], overrides: Overrides, tmp_path: Path
) -> None:
    assert assert_goes_on_bitwise(overrides, tmp_path, *words).averaged
    whole, stopped = (recorded(tmp_path / name, "averaged/loss") for name in ("whole", "run"))
    assert whole.keys() == {10, 20}
    assert whole == {step: loss for step, loss in stopped.items() if step != 11}  # where the stopped one ended


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_has_the_same_average(overrides: Overrides, tmp_path: Path) -> None:
    words = [*EMA, "total_steps=60", "validate_every=20"]
    run_here(overrides(*words, output="whole"))
    for step in (5, 25, 45):
        command = [sys.executable, str(ROOT / "train.py"), *overrides(*words)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for(process, tmp_path / "run", f"step-{step:06d}.ckpt")
        process.kill()
        process.communicate()
    run_here(overrides(*words))
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert recorded(tmp_path / "whole", "averaged/loss") == recorded(tmp_path / "run", "averaged/loss")


def test_the_validation_is_that_of_the_averaged_weights(trained_once: Trained) -> None:
    folder = trained_once(*EMA)
    config = DataConfig("local", 32, 64, shards="here", validation_tokens=1024)
    shards = ShardFolder(read(folder / "last.ckpt").training.data["shards"])
    corpora = validation_data(shards, config).values()
    windows = torch.cat([each.__getitems__(range(min(1024 // 32, len(each)))) for each in corpora])
    losses = {}
    for name, path in (("averaged", f"{folder}/last.ckpt:averaged"), ("validation", folder / "last.ckpt")):
        with torch.no_grad():
            losses[name] = gptstar.load(path)(windows[:, :-1], targets=windows[:, 1:]).double().mean().item()
        assert recorded(folder, f"{name}/loss")[24] == pytest.approx(losses[name], rel=1e-6)
    assert abs(losses["averaged"] - losses["validation"]) > 1e-3


def test_averaged_weights_are_exported_and_named(
    trained_once: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_once(*EMA)
    main(["export", f"{folder}:averaged", str(tmp_path / "out")])
    assert "averaged weights" in capsys.readouterr().out
    exported, ours = read_huggingface(tmp_path / "out"), read_file(find(folder))
    torch.testing.assert_close(exported.weights, ours.averaged, rtol=0, atol=0)
    card = (tmp_path / "out/README.md").read_text()
    assert "their average over steps" in card
    assert "`averaging.kind=ema`" in card
    last, averaged = (identity(path, read(path)) for path in map(find, (folder, Path(f"{folder}:averaged"))))
    assert (last["name"], averaged["name"]) == ("run/best", "run/best:averaged")
    assert last["sha256"] != averaged["sha256"]
    assert averaged["tokens"] == last["tokens"] == 24 * 256


def test_averaged_weights_alone_become_a_checkpoint_and_begin_a_run(
    trained_once: Trained, overrides: Overrides, refusal: Callable[..., str], tmp_path: Path
) -> None:
    folder, out = trained_once(*EMA), tmp_path / "averaged.ckpt"
    assert "add --weights-only" in refusal(main, ["consolidate", f"{folder}:averaged", str(out)])
    main(["consolidate", f"{folder}:averaged", str(out), "--weights-only"])
    torch.testing.assert_close(read(out).weights, read(folder / "last.ckpt").averaged, rtol=0, atol=0)
    own = [word for word in overrides("total_steps=4", *EMA) if not word.startswith("model.")]
    run_here([*own, f"init_from={folder}:averaged"])
    assert recorded(tmp_path / "run")[1] == pytest.approx(recorded(folder)[24], abs=0.5)
    assert "is neither auto, never, nor a checkpoint" in refusal(run_here, overrides(f"resume={folder}:averaged"))


@pytest.mark.slow
def test_a_checkpoint_without_an_average_says_so(trained_once: Trained, refusal: Callable[..., str]) -> None:
    folder = trained_once()
    assert "averaged" not in torch.load(find(folder), weights_only=True)  # as those of earlier versions
    said = refusal(main, ["generate", f"{folder}:averaged"])
    assert f"{find(folder)} holds no averaged weights: drop :averaged" in said


def test_an_average_of_another_shape_is_refused(trained_once: Trained, tmp_path: Path) -> None:
    checkpoint = read_file(find(trained_once(*EMA)))
    name = "norm.weight"
    write(tmp_path / "a.ckpt", replace(checkpoint, averaged=checkpoint.averaged | {name: torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=r"norm.weight is \[5\], not \[24\]"):
        read(tmp_path / "a.ckpt")


@pytest.mark.slow
def test_what_an_average_needs_from_before_is_asked_for(
    trained_once: Trained, overrides: Overrides, refusal: Callable[..., str], tmp_path: Path
) -> None:
    source = trained_once("schedule=wsd", "total_steps=10", "schedule.decay_until=100")
    shutil.copytree(source, tmp_path / "other")
    words = overrides("schedule=wsd", "total_steps=20", f"branch_from={tmp_path / 'other/last.ckpt'}", *EMA)
    assert "give averaging.begin=10, or averaging=none" in refusal(run_here, words)
    run_here([*words, "averaging.begin=10"])
    assert read(tmp_path / "run/last.ckpt").averaged
    resumed = overrides("schedule=wsd", "total_steps=20", "averaging=none", "schedule.decay_until=20")
    assert "averaging.kind (checkpoint: ema, now: none)" in refusal(run_here, resumed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("averaging=ema", "averaging.decay=1.0"), "averaging.decay=1.0 is not below 1"),
        (("averaging=ema", "averaging.fraction=0.5"), "averaging.fraction is a key of averaging=tail"),
        (
            ("averaging=tail", "averaging.fraction=0.01"),
            "averaging.fraction=0.01 is less than one step of total_steps=24",
        ),
        (("averaging=swa",), "averaging=swa does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: tuple[str, ...], said: str, overrides: Overrides, refusal: Callable[..., str]
) -> None:
    assert said in refusal(run_here, overrides(*words))


def test_the_plan_counts_it() -> None:
    model = GPTConfig(n_layers=3, d_model=256, n_heads=4, n_vocab=1000)
    none, ema = AVERAGING.parse("none"), AVERAGING.parse("ema")
    plain, averaged = (Workload(model, 64, "float32", shards=2, averaging=each).memory(3) for each in (none, ema))
    assert plain.averaged == 0
    assert averaged.averaged == 4 * model.n_params // 2
    assert averaged.total - plain.total == averaged.averaged
    plain, averaged = (Workload(model, 64, "float32", on_gpu=False, averaging=each).memory(3) for each in (none, ema))
    assert averaged.total - plain.total == 8 * model.n_params  # and its copy while a checkpoint is written


def test_both_are_evaluated_side_by_side(trained_once: Trained, tmp_path: Path) -> None:
    folder = trained_once(*EMA)
    words = ["evaluation=length", "evaluation.context_lengths=[32]", "evaluation.max_tokens=640", "hardware=cpu"]
    evaluate_here(*words, f"checkpoint=[{folder},{folder}:averaged]", f"output={tmp_path / 'out'}")
    results = json.loads((tmp_path / "out/results.json").read_text())
    known = [each["checkpoint"] for each in results["curves"]]
    assert [each["name"] for each in known] == ["run/best", "run/best:averaged"]
    losses = [each["lengths"][0]["loss"]["value"] for each in results["curves"]]
    assert losses[0] != losses[1]
