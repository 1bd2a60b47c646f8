"""Runs in this process: learning, recording, saving, resuming and errors."""

import csv
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import gptstar.training.run
from gptstar.checkpoint.format import Checkpoint, write
from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.data.tokenizer import Tokenizer
from gptstar.entry import compose
from gptstar.errors import DataError
from gptstar.model import GPT, GPTConfig
from gptstar.ranks import Ranks
from gptstar.training.checkpoints import SaveCheckpoints
from gptstar.training.metrics import MetricsCSV
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.module import LanguageModelling
from gptstar.training.optimizers.adamw import AdamW
from gptstar.training.optimizers.base import decays
from gptstar.training.plan import free_device
from gptstar.training.status import Status
from gptstar.training.trainer import build_trainer
from support.runs import SMALL, assert_same_run, damage, recorded, run_here
from support.text import sentences

Overrides = Callable[..., list[str]]
Trained = Callable[..., Path]

ENDED_EARLY = ("schedule.decay_until=12", "total_steps=17")


@pytest.mark.core
def test_a_run_explains_itself(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("tracker.gradient_norms=layers"), draw=True)
    folder = tmp_path / "run"
    files = {path.name for path in folder.iterdir()}
    assert files >= {"best.ckpt", "config.yaml", "last.ckpt", "loss.png", "metrics.csv", "versions.json"}
    assert sorted(recorded(folder)) == list(range(1, 25))
    assert recorded(folder)[1] == pytest.approx(math.log(300), abs=0.05)
    assert recorded(folder)[24] < recorded(folder)[1] - 0.2
    assert sorted(recorded(folder, "validation/loss")) == [10, 20, 24]
    first = next(row for row in read_metrics(folder) if row["step"] == 1)
    assert first["learning_rate"] == 0.0
    assert {"gradient_norm/block_00", "gradient_norm/block_01", "data_wait", "train/perplexity"} <= set(first)
    assert first["tokens"] == 256
    assert "mfu" not in first  # no data sheet gives a CPU's peak
    validation = next(row for row in read_metrics(folder) if "validation/loss" in row)
    assert {"validation/bits_per_byte", "validation/alpha/loss", "validation/beta/bits_per_byte"} <= set(validation)
    checkpoint = read(folder / "last.ckpt")
    assert checkpoint.training.step == 24
    assert checkpoint.training.settings["optimizer.beta2"] == 0.95
    assert checkpoint.training.data["blocks"] == 24 * 4


def test_bits_per_byte_are_those_of_the_text(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("total_steps=4", "schedule.warmup_steps=1", "validate_every=2"))
    from gptstar.data.order.windows import Windows
    from gptstar.data.preparation.prepare import ensure_prepared
    from support.text import QUIET

    config = TrainConfig.parse(compose("train", overrides()))
    shards = ensure_prepared(config.recipe.data, 300, QUIET)
    model = read(tmp_path / "run/last.ckpt").build()
    nats = n_bytes = 0.0
    for corpus in ("alpha", "beta"):
        windows = Windows([shards.stream("validation", corpus)], 32, 64)
        batch = windows.__getitems__(range(min(len(windows), 32)))
        with torch.inference_mode():
            nats += model(batch[:, :-1], batch[:, 1:]).double().sum().item()
        n_bytes += sum(len(shards.tokenizer.decode([t]).encode()) for t in batch[:, 1:].flatten().tolist())
    found = [row["validation/bits_per_byte"] for row in read_metrics(tmp_path / "run") if "validation/loss" in row]
    assert found[-1] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_equal_seeds_give_equal_losses_and_others_do_not(overrides: Overrides, tmp_path: Path) -> None:
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_here(overrides(f"seed={seed}", "model.dropout=0.1", "total_steps=8", output=output))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert recorded(tmp_path / "a")[1] != recorded(tmp_path / "c")[1]


def test_accumulation_changes_memory_and_not_the_result(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("hardware.micro_batch_size=8", "total_steps=8", output="one"))
    run_here(overrides("hardware.micro_batch_size=2", "total_steps=8", output="four"))
    one, four = recorded(tmp_path / "one"), recorded(tmp_path / "four")
    assert list(one.values()) == pytest.approx(list(four.values()), rel=1e-4)


@pytest.mark.slow
def test_loader_workers_change_nothing(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("total_steps=6", output="none"))
    run_here(overrides("total_steps=6", "data.loader_workers=2", output="two"))
    assert recorded(tmp_path / "none") == recorded(tmp_path / "two")


@pytest.mark.slow
def test_one_batch_is_memorised(overrides: Overrides, tmp_path: Path) -> None:
    more = ("debug=overfit", "batch_tokens=128", "data.context_length=32", "optimizer.learning_rate=5e-3")
    run_here(overrides(*more, "total_steps=150", "model.d_model=96", "optimizer.weight_decay=0"))
    assert min(recorded(tmp_path / "run").values()) < 0.05


class StopAt(Callback):
    """A callback that sends a signal to this process at a given moment of a run."""

    def __init__(self, hook: str, step: int, number: int) -> None:
        self.step, self.number = step, number
        setattr(self, hook, self.fire)

    def fire(self, trainer: object, *_: object) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    "holds", ["{", *(pytest.param(each, marks=pytest.mark.slow) for each in ("[]", '{"began": 3}', "[" * 100_000))]
)
def test_a_run_goes_on_though_its_versions_are_damaged(overrides, tmp_path, holds):
    run_here(overrides("total_steps=4", "schedule.decay_until=6"))
    (tmp_path / "run/versions.json").write_text(holds)
    run_here(overrides("total_steps=6"))
    assert max(recorded(tmp_path / "run")) == 6
    assert Status.read(tmp_path / "run").state == "finished"
    assert json.loads((tmp_path / "run/versions.json").read_text())["began"]


@pytest.mark.core
@pytest.mark.parametrize(
    ("hook", "step", "number"),
    [
        ("on_train_batch_start", 3, signal.SIGTERM),  # within accumulation
        pytest.param("on_train_batch_end", 7, signal.SIGINT, marks=pytest.mark.slow),
        ("on_validation_batch_start", 10, signal.SIGTERM),
        pytest.param("on_validation_batch_start", 24, signal.SIGINT, marks=pytest.mark.slow),  # after the last step
    ],
)
def test_a_signal_saves_and_the_run_goes_on_as_if_never_stopped(
    hook: str, step: int, number: int, overrides: Overrides, trained_once: Trained, tmp_path: Path, refusal, monkeypatch
) -> None:
    more = ("model.dropout=0.1", "data.block_tokens=32", "batch_tokens=256", "total_steps=24")
    with monkeypatch.context() as patch:
        stop = StopAt(hook, step, number)

        def build(*args: object, callbacks: list[Callback], **options: object) -> Trainer:
            return build_trainer(*args, callbacks=[stop, *callbacks], **options)

        patch.setattr(gptstar.training.run, "build_trainer", build)
        assert f"{signal.Signals(number).name} at step {step} of 24: saved" in refusal(run_here, overrides(*more))
    assert read(tmp_path / "run/last.ckpt").training.step == step
    run_here(overrides(*more))
    assert_same_run(trained_once(*more), tmp_path / "run")


def test_a_finished_run_goes_no_further(overrides: Overrides, trained_once: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained_once(), tmp_path / "run", symlinks=True)
    before = (tmp_path / "run/metrics.csv").read_text()
    run_here(overrides())
    assert (tmp_path / "run/metrics.csv").read_text() == before


@pytest.mark.slow
def test_a_run_can_be_lengthened_where_its_schedule_allows(
    overrides: Overrides, trained_once: Trained, tmp_path: Path
) -> None:
    shutil.copytree(trained_once(*ENDED_EARLY), tmp_path / "run", symlinks=True)
    run_here(overrides("schedule.decay_until=12"))
    whole, longer = recorded(trained_once("schedule.decay_until=12")), recorded(tmp_path / "run")
    assert whole == longer


def test_a_resume_under_other_settings_is_refused_by_key(overrides: Overrides, tmp_path: Path, refusal) -> None:
    run_here(overrides("total_steps=6"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    line = refusal(run_here, overrides("total_steps=9", "optimizer.beta2=0.99", "model.gelu=tanh"))
    assert "optimizer.beta2 (checkpoint: 0.95, now: 0.99)" in line
    assert "model.gelu (checkpoint: exact, now: tanh)" in line
    assert "schedule.decay_until (checkpoint: 6, now: 9)" in line
    line = refusal(run_here, overrides("total_steps=9"))
    assert "total_steps=9 would change settings that" in line
    assert "give schedule.decay_until=6 to train longer" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert "holds a run and resume=never" in refusal(run_here, overrides("total_steps=6", "resume=never"))


def test_a_resume_with_other_text_is_refused(overrides: Overrides, tmp_path: Path, refusal) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(Tokenizer.train(sentences(20, 100, seed=0), 300).json_text)
    same = ("total_steps=6", f"data.tokenizer={tokenizer}")
    run_here(overrides(*same))
    assert "hold other tokens" in refusal(run_here, overrides(*same, "data.validation_fraction=0.3"))
    assert "different tokenizers" in refusal(run_here, overrides("total_steps=6"))


def test_a_run_starts_from_another_runs_checkpoint(overrides: Overrides, trained_once: Trained, tmp_path: Path) -> None:
    again = overrides("schedule.decay_until=12", f"resume={trained_once(*ENDED_EARLY) / 'last.ckpt'}", output="second")
    run_here(again)
    assert recorded(tmp_path / "second") == {
        step: loss for step, loss in recorded(trained_once("schedule.decay_until=12")).items() if step > 17
    }
    run_here(again)  # its own last checkpoint comes first now


def test_a_run_killed_before_it_saved_begins_again(overrides: Overrides, trained_once: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained_once(), tmp_path / "run", symlinks=True)
    for path in (tmp_path / "run").glob("*.ckpt"):
        path.unlink()
    run_here(overrides())
    assert_same_run(trained_once(), tmp_path / "run")


class SeesLast(Callback):
    """A callback that records the step from which a run would resume, at every step after the fifth."""

    def __init__(self, path: Path, found: list[int]) -> None:
        self.path, self.found = path, found

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step > 5:
            deadline = monotonic() + 60  # it is written while training goes on
            while not self.path.exists() and monotonic() < deadline:
                sleep(0.01)
            self.found.append(read(self.path).training.step)


def test_a_new_best_is_also_what_a_run_goes_on_from(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("checkpoint_every=1000", "validate_every=5", "schedule.decay_until=20")
    found: list[int] = []

    def build(*args: object, callbacks: list[Callback], **options: object) -> Trainer:
        return build_trainer(*args, callbacks=[*callbacks, SeesLast(tmp_path / "run/last.ckpt", found)], **options)

    monkeypatch.setattr(gptstar.training.run, "build_trainer", build)
    run_here(overrides(*more, "total_steps=7"))
    assert found == [5, 5]  # the two micro-batches of step 7


def test_a_time_limit_saves_where_it_stops(overrides: Overrides, tmp_path: Path, capsys) -> None:
    more = ("total_steps=100000", "schedule.decay_until=50", "checkpoint_every=100000", "validate_every=100000")
    run_here(overrides(*more, "trainer.max_time='00:00:00:01'"))
    step = read(tmp_path / "run/last.ckpt").training.step
    assert step == max(recorded(tmp_path / "run"))
    assert f"stopped at step {step:,}" in capsys.readouterr().out


def test_limits_count_steps(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("hardware.micro_batch_size=2", "trainer.limit_train_batches=3", "total_steps=6"))
    assert sorted(recorded(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


def test_a_best_of_another_run_does_not_count(overrides: Overrides, trained_once: Trained, tmp_path: Path) -> None:
    source = read(trained_once(*ENDED_EARLY) / "last.ckpt")
    lucky = replace(source, training=replace(source.training, best_loss=0.1))
    write(tmp_path / "lucky.ckpt", lucky)
    run_here(overrides("schedule.decay_until=12", f"resume={tmp_path / 'lucky.ckpt'}"))
    assert read(tmp_path / "run/best.ckpt").training.best_loss > 1


def test_a_directory_to_resume_means_its_last_checkpoint(
    overrides: Overrides, trained_once: Trained, tmp_path: Path
) -> None:
    run_here(overrides("schedule.decay_until=12", f"resume={trained_once(*ENDED_EARLY)}"))
    assert min(recorded(tmp_path / "run")) == 18


def test_only_the_best_left_is_gone_on_from(overrides: Overrides, trained_once: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained_once(), tmp_path / "run", symlinks=True)
    best = (tmp_path / "run/best.ckpt").resolve()
    for path in (tmp_path / "run").glob("*.ckpt"):
        if path.name not in (best.name, "best.ckpt"):
            path.unlink()
    run_here(overrides())
    assert_same_run(trained_once(), tmp_path / "run")


def test_a_run_can_not_be_shortened(overrides: Overrides, trained_once: Trained, tmp_path: Path, refusal) -> None:
    shutil.copytree(trained_once("schedule.decay_until=12"), tmp_path / "run", symlinks=True)
    before = (tmp_path / "run/config.yaml").read_text()
    line = refusal(run_here, overrides("schedule.decay_until=12", "total_steps=20"))
    assert "total_steps=20 is less than step" in line
    line = refusal(run_here, overrides("schedule.decay_until=12", "total_steps=30", "trainer.max_time=abc"))
    assert "Lightning rejects" in line
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_a_directory_of_other_files_is_left_alone(overrides: Overrides, tmp_path: Path, refusal) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/loss.png").write_text("mine")
    assert "holds files that are not a run's" in refusal(run_here, overrides())
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == ["loss.png"]


def test_signals_are_given_back(overrides: Overrides) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_here(overrides("total_steps=4", "schedule.warmup_steps=1"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_optimizer_of_another_shape_is_refused(overrides: Overrides, tmp_path: Path, refusal) -> None:
    run_here(overrides("total_steps=4", "schedule.decay_until=12", output="first"))
    source = read(tmp_path / "first/last.ckpt")
    source.training.optimizer["norm.weight"]["exp_avg"] = torch.zeros(3)
    write(tmp_path / "altered.ckpt", source)
    more = ("total_steps=8", "schedule.decay_until=12", f"resume={tmp_path / 'altered.ckpt'}")
    assert "exp_avg of norm.weight is missing or has another shape" in refusal(run_here, overrides(*more))


def test_too_little_held_out_text_is_refused(overrides: Overrides, tmp_path: Path, refusal) -> None:
    line = refusal(run_here, overrides("data.block_tokens=512", "batch_tokens=512", "data.validation_fraction=0.001"))
    assert "has one block of 512 held-out tokens" in line


def test_plain_weights_begin_a_new_run(overrides: Overrides, trained_once: Trained, tmp_path: Path) -> None:
    trained = read(trained_once() / "last.ckpt")
    write(tmp_path / "weights.ckpt", Checkpoint(trained.model, trained.weights, trained.tokenizer))
    run_here(overrides(f"resume={tmp_path / 'weights.ckpt'}", output="second"))
    assert recorded(tmp_path / "second")[1] < recorded(trained_once())[2]
    assert sorted(recorded(tmp_path / "second")) == list(range(1, 25))


def test_imported_weights_go_on_training(overrides: Overrides, shared: Path, tmp_path: Path) -> None:
    from gptstar.cli import main

    source = shared / "legacy/alibi-parallel-full-1.pth.tar"
    main(["import", str(source), str(tmp_path / "imported.ckpt")])
    sizes = ("model.n_layers=2", "model.d_model=64", "model.n_heads=4", "model.n_vocab=512")
    run_here(overrides(*sizes, f"resume={tmp_path / 'imported.ckpt'}"))
    assert sorted(recorded(tmp_path / "run")) == list(range(4, 25))


@pytest.mark.parametrize(("how", "says"), [("cut", "was truncated"), ("flipped", "is damaged")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_from(
    how: str, says: str, overrides: Overrides, trained_once: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted = trained_once("total_steps=16", "schedule.decay_until=24")
    shutil.copytree(interrupted, tmp_path / "run", symlinks=True)
    damage(tmp_path / "run/last.ckpt", how)
    capsys.readouterr()
    run_here(overrides())
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"step-000016.ckpt {says}[^;]*; trying step-000015.ckpt", said), said
    assert "at step 15 of 24" in said
    assert_same_run(trained_once(), tmp_path / "run")


def test_where_no_checkpoint_is_whole_a_resume_is_refused_and_they_stay(
    overrides: Overrides, tmp_path: Path, refusal
) -> None:
    run_here(overrides("total_steps=6"))
    paths = [path for path in (tmp_path / "run").glob("*.ckpt") if not path.is_symlink()]
    for path in paths:
        damage(path, "cut")
    data = [path.read_bytes() for path in paths]
    assert "was truncated" in refusal(run_here, overrides("total_steps=9"))
    assert [path.read_bytes() for path in paths] == data


def break_steps(where: str, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loss or gradient nan or infinite at some steps."""
    training_step = LanguageModelling.training_step

    def broken(self: LanguageModelling, windows: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = training_step(self, windows, batch_idx)
        if self.global_step + 1 not in steps:
            return loss
        if where == "loss":
            self._step_loss += math.nan
            return loss * math.nan
        return loss * torch.tensor(3e38, requires_grad=True) * 10

    monkeypatch.setattr(LanguageModelling, "training_step", broken)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_skipped_where_asked_for(
    where: str, overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(where, {13, 14}, monkeypatch)
    run_here(overrides("on_nonfinite=skip", "log_every=4", "checkpoint_every=1", "checkpoint_keep=15"))
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "skipped" in row] == [13, 14]
    assert 13 not in recorded(tmp_path / "run")
    at = [read(tmp_path / f"run/step-0000{step}.ckpt") for step in (12, 13, 14, 15)]
    for skipped in at[1:3]:
        torch.testing.assert_close(skipped.weights, at[0].weights, rtol=0, atol=0)
        torch.testing.assert_close(skipped.training.optimizer, at[0].training.optimizer, rtol=0, atol=0)
    assert at[3].training.optimizer["norm.weight"]["step"] == at[0].training.optimizer["norm.weight"]["step"] + 1
    assert not torch.equal(at[3].weights["norm.weight"], at[0].weights["norm.weight"])


def test_a_run_that_skips_on_and_on_ends(
    overrides: Overrides, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps("loss", set(range(8, 99)), monkeypatch)
    line = refusal(run_here, overrides("on_nonfinite=skip"))
    assert "step 17: the loss is nan" in line
    assert "10 steps in a row were skipped" in line


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    where: str, overrides: Overrides, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(where, {13}, monkeypatch)
    line = refusal(run_here, overrides())
    assert "step 13: the loss is" in line
    assert "on_nonfinite=skip" in line
    assert "last.ckpt is kept" in line
    checkpoint = read(tmp_path / "run/last.ckpt")
    assert checkpoint.training.step == 10
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.weights.values())


def test_what_can_not_be_read_at_the_end_is_left_out_by_the_same_command(
    overrides: Overrides, capsys: pytest.CaptureFixture[str], refusal
) -> None:
    few = ("total_steps=2", "schedule.warmup_steps=1")
    reading = ("reading.multiples=[4096]", "reading.protocol=fixed_targets", "reading.rotary_scaling=[none]")
    assert "rerun with reading.multiples=[] to skip the length study" in refusal(run_here, overrides(*few, *reading))
    run_here(overrides(*few, "reading.multiples=[]"))
    assert "at step 2 of 2" in capsys.readouterr().out


def test_a_validation_that_is_not_finite_stops_the_run(overrides: Overrides, tmp_path: Path, refusal) -> None:
    hot = ("optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "total_steps=1")
    assert "step 1: the validation loss is nan" in refusal(run_here, overrides(*hot))
    assert Status.read(tmp_path / "run").state == "failed"
    assert not (tmp_path / "run/best.ckpt").exists()


def test_a_finished_run_is_not_that_of_another_precision(
    overrides: Overrides, capsys: pytest.CaptureFixture[str], refusal
) -> None:
    few = ("total_steps=2", "schedule.warmup_steps=1")
    run_here(overrides(*few))
    run_here(overrides(*few, "hardware.micro_batch_size=2"))
    assert "is finished already" in capsys.readouterr().out
    other = overrides(*few, "hardware.precision=bf16")
    assert "hardware.precision (checkpoint: float32, now: bf16)" in refusal(run_here, other)


def test_a_directory_serves_one_run_at_a_time(overrides: Overrides, tmp_path: Path, refusal) -> None:
    from gptstar.training.run_directory import RunDirectory

    with RunDirectory(tmp_path / "run", Ranks()):
        assert "in use by another run" in refusal(run_here, overrides())
    assert not (tmp_path / "run").exists()  # one that never began leaves no trace


def test_an_unwritable_directory_is_refused(overrides: Overrides, tmp_path: Path, refusal) -> None:
    (tmp_path / "file").write_text("mine")
    line = refusal(run_here, overrides(output="file/run"))
    assert "can't be written" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_debug_modes(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("debug=fast", output="fast"))
    assert not list((tmp_path / "fast").glob("*.ckpt"))
    run_here(overrides("debug=profile", "total_steps=5", "schedule.warmup_steps=1", output="profile"))
    assert (tmp_path / "profile/trace.json.gz").exists()


def test_lightnings_own_profilers_are_passed_through(overrides: Overrides, caplog: pytest.LogCaptureFixture) -> None:
    run_here(overrides("trainer.profiler=simple", "total_steps=4", "schedule.warmup_steps=1"))
    assert "run_training_batch" in caplog.text


def test_decay_is_decided_by_owner_and_leaf() -> None:
    for residual in ("parallel", "sequential"):
        model = GPT(GPTConfig(1, 22, 2, 97, residual=residual, positions="learned", n_ctx=7))
        decayed = {name for name, _, decays_ in decays(model, final_norm=False) if decays_}
        at = "blocks.0."
        assert decayed == {
            "token_embedding.weight",
            f"{at}attention.qkv.weight",
            f"{at}attention.out.weight",
            f"{at}mlp.up.weight",
            f"{at}mlp.down.weight",
        }
        legacy = {name for name, _, decays_ in decays(model, final_norm=True) if decays_}
        assert legacy - decayed == {"norm.weight", "norm.bias"}
        groups = AdamW(learning_rate=1.0).build(model).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_the_published_learning_rates() -> None:
    config = TrainConfig.parse(compose("train", ["experiment=gpt127", "data.files=x"]))
    recipe = config.recipe
    peak = recipe.optimizer.learning_rate
    schedule = recipe.schedule.resolved(recipe.total_steps)
    rates = {step: peak * schedule.fraction(step) for step in (0, 2000, 4000, 45000, 51000)}
    assert rates == pytest.approx({0: 0.0, 2000: 3e-4, 4000: 6e-4, 45000: 6e-5, 51000: 6e-5})
    assert schedule.fraction(24500) * peak == pytest.approx(3.3e-4)
    assert (recipe.total_steps, recipe.batch_tokens, recipe.data.context_length) == (51000, 524288, 512)


def test_metrics_survive_a_line_cut_short_and_new_columns(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path, start_step=0)
    logger.log_metrics({"a": 0.1 + 0.2}, step=1)
    logger.log_metrics({"a": 2.0, "b": 3.0}, step=2)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,4")
    assert read_metrics(tmp_path) == [{"step": 1, "a": 0.1 + 0.2}, {"step": 2, "a": 2.0, "b": 3.0}]
    MetricsCSV(tmp_path, start_step=1).log_metrics({"b": 5.0}, step=2)
    assert read_metrics(tmp_path) == [{"step": 1, "a": 0.1 + 0.2}, {"step": 2, "b": 5.0}]
    with (tmp_path / "metrics.csv").open() as file:
        assert next(csv.reader(file)) == ["step", "a", "b"]


@pytest.mark.parametrize(
    "damage", [b'3,"4\n', b"\xff\x00,4\n", b"3," + b"x" * 200_000 + b"\n", b"3,4,5\n", b"three,4\n"]
)
def test_a_damaged_line_of_metrics_costs_no_other(tmp_path: Path, damage: bytes) -> None:
    logger = MetricsCSV(tmp_path, start_step=0)
    logger.log_metrics({"a": 2.0}, step=1)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage)
    logger.log_metrics({"a": 4.0}, step=4)
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2.0}, {"step": 4, "a": 4.0}]


def test_metrics_that_are_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(DataError, match=r"can't read .*metrics\.csv: not a regular file"):
        read_metrics(tmp_path)


def test_small_runs_are_small() -> None:
    """The tests' shared settings are as small as intended."""
    config = TrainConfig.parse(compose("train", [*SMALL, "data=local", "data.files=x"]))
    assert (config.recipe.sequences_per_step, config.micro_batches(free_device(config.hardware)).accumulate) == (8, 2)
    assert shutil.which("git")


def test_sigterm_between_two_batches_is_answered_after_the_next(
    overrides: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = SaveCheckpoints._stop_if_asked

    def arrives_late(self: SaveCheckpoints, trainer: Trainer, pl_module: LightningModule) -> None:
        check(self, trainer, pl_module)
        if trainer.global_step == 3 and self._signal is None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SaveCheckpoints, "_stop_if_asked", arrives_late)
    with pytest.raises(SystemExit) as stopped:
        run_here(overrides("checkpoint_every=100", "validate_every=100", "hardware.micro_batch_size=8"))
    assert stopped.value.code == 128 + signal.SIGTERM
    saved = read(tmp_path / "run" / "last.ckpt")
    assert saved.training is not None
    assert saved.training.step == 4
