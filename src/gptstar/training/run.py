"""A training run from its configuration to its results, in chronological order."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.kept import LAST, restored_from
from gptstar.data.datamodule import WindowsDataModule
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import Refusal, TrainingError
from gptstar.model import GPT
from gptstar.ranks import Ranks, joined, started_processes
from gptstar.terminal import Terminal
from gptstar.training.callbacks import UserCallbacks
from gptstar.training.checkpoints import SaveCheckpoints, is_trial
from gptstar.training.compiling import NotCompiledError
from gptstar.training.evaluations import EvaluateCheckpoints
from gptstar.training.evaluator import evaluator_of
from gptstar.training.final_studies import check_final_studies
from gptstar.training.hardware import Hardware
from gptstar.training.loggers import describe_run, tracked
from gptstar.training.memory import keep_freed_memory, stay_within_own_part
from gptstar.training.metrics import RecordMetrics
from gptstar.training.micro_batch import MicroBatches, agreed_micro_batches, out_of_memory
from gptstar.training.module import LanguageModelling
from gptstar.training.options import TRACE
from gptstar.training.plan import Workload, check_fits, free_device
from gptstar.training.profile import ProfileSteps
from gptstar.training.progress import StepProgress
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record
from gptstar.training.report import Ended, conclude
from gptstar.training.restored import check_restored
from gptstar.training.resume import begin, initial_weights, read_for
from gptstar.training.run_directory import RunDirectory
from gptstar.training.saving import BackgroundWriter
from gptstar.training.settings import has_nothing_left, settings_of
from gptstar.training.trainer import build_trainer, fast_forward, fit


def train(recipe: Recipe, hardware: Hardware, record: Record, config_yaml: str) -> None:
    """Train to the last step, resuming if the run directory holds a checkpoint, and report the results.

    Args:
        config_yaml: the composed configuration as text, for the run directory.

    Raises:
        Refusal: the user can correct the error; saved checkpoints remain.
    """
    device_type = hardware.device().type
    hardware.check_world(started_processes())  # first: joining would wait for missing processes
    with joined(device_type) as ranks, RunDirectory(record.output, ranks) as directory, ExitStack() as until_the_end:
        _set_up_memory(device_type)
        console = Terminal(quiet=not ranks.first)
        say = partial(console.print, soft_wrap=True, highlight=False)
        record, recipe = replace(record, output=directory.path), recipe.resolved(hardware.resolved_precision())
        if record.resume == "auto" and ranks.agreed(lambda: has_nothing_left(record, config_yaml)):
            say(f"{record.output} is finished already")
            return
        workload = Workload.planned(recipe, hardware, on_gpu=device_type == "cuda")
        ranks.together(lambda: check_fits(workload, free_device(hardware)))
        callbacks = ranks.together(lambda: UserCallbacks(record.trainer))
        recorder = RecordMetrics(recipe, log_every=record.log_every, peak_flops=hardware.peak_flops())
        evaluator = until_the_end.enter_context(evaluator_of(recipe, hardware, record, needed=ranks.first))
        shards = ranks.in_turn(lambda: ensure_prepared(recipe.data, recipe.model.n_vocab, console))
        if table := ranks.agreed(lambda: restored_from(record.output)):
            ranks.together(lambda: check_restored(record.output, config_yaml, shards.manifest.fingerprint))
            say(f"{record.output} is finished, in {table}; for its checkpoint, train it in another output")
            return
        ranks.together(lambda: check_final_studies(record, recipe.data.context_length, shards))
        read = partial(read_for, record=record, ranks=ranks, sharded=hardware.sharded)
        warn = partial(say, style="yellow")
        source = directory.start_from(record, read, warn)
        saved = source[1].training.machine if source and source[1].training else {}
        batches = agreed_micro_batches(hardware, workload, saved, ranks, warn)
        data = _data(recipe, hardware, shards, batches)
        settings = settings_of(recipe, hardware) | {f"data.mixture.{name}": n for name, n in data.mixed_blocks.items()}
        beginning = ranks.together(lambda: begin(source, recipe, settings, shards, record, sharded=hardware.sharded))
        initial = ranks.agreed(lambda: initial_weights(source, record))
        data.start_step = step = beginning.state.step
        if source is not None:
            say(_origin(source, step, recipe.total_steps))
        say(_headline(recipe, record, batches))
        if device_line := hardware.explain_device():
            say(device_line)

        def describe(step: int) -> dict[str, dict[str, Any]]:
            about = {"settings": settings, "data": _data_read(step, recipe, data, shards) | initial}
            return about | {"machine": batches.as_dict(ranks.world_size)}

        writer = BackgroundWriter(
            record.output,
            keep=record.checkpoint_keep,
            evaluated_every=record.evaluation.every_n_steps,
            ranks=ranks,
            sharded=hardware.sharded,
        )
        tokenizer = shards.tokenizer
        saver = SaveCheckpoints(writer, record, tokenizer.json_text, describe, callbacks, beginning.state)
        evaluations = EvaluateCheckpoints(evaluator, record, recorder, console)
        ranks.together(lambda: evaluations.check(step))
        observers = _observers(recorder, recipe, hardware, record, console)
        trainer = build_trainer(
            recipe,
            hardware,
            record,
            accumulate=batches.accumulate,
            loggers=ranks.together(lambda: until_the_end.enter_context(tracked(record, step, console))),
            callbacks=[*observers, evaluations, *callbacks.callbacks, saver],
        )
        module = LanguageModelling(beginning, recipe, hardware, record.tracker, tokenizer, list(data.validation))
        _choose_forms(beginning.model, hardware, batches)
        if not hardware.sharded:
            beginning.state.optimizer.clear()  # twice the model's size
        directory.describe(config_yaml, shards.manifest.fingerprint)
        if ranks.first:
            describe_run(trainer.loggers, record.output, shards.manifest)
        fast_forward(trainer, step)
        ended = callbacks.have_ended(beginning.state.ended)
        try:
            fit(trainer, module, data, saver, trains=ended is None)
            writer.wait()
            ended = ended or callbacks.ending(trainer).get("reason")
            evaluations.finish(trainer, ended, saver)
        except (TrainingError, torch.OutOfMemoryError) as error:
            raise _refusal(error, batches, writer, record, ranks) from error
        finally:
            saver.stop_listening()
        saver.leave_if_asked(trainer)
        if ranks.first and not is_trial(trainer):
            run = Ended(trainer.global_step, shards, recipe, hardware, record)
            line = _conclusion(trainer, run, ended, console)
            until_the_end.close()  # trackers may print something before the last line
            say(line)
            if run.step >= recipe.total_steps or ended is not None:
                directory.finished(ended or "")


def _set_up_memory(device_type: str) -> None:
    """On a CPU, reuse freed memory; on a GPU that several runs share, respect this run's share."""
    if device_type == "cpu":
        keep_freed_memory()
    if device_type == "cuda":
        stay_within_own_part()


def _conclusion(trainer: pl.Trainer, run: Ended, ended: str | None, console: Terminal) -> str:
    """Report on a run that reached its last step or was ended by a callback; return the run's last line."""
    if run.step < run.recipe.total_steps and ended is None:
        return f"stopped at step {run.step:,}; output={run.record.output} continues it"
    if ended is not None:
        line = f"ended at step {run.step:,} by {ended}; to train further, change trainer.callbacks"
        console.print(line, soft_wrap=True, highlight=False)
    return conclude(trainer, run, console)


def _data(recipe: Recipe, hardware: Hardware, shards: ShardFolder, batches: MicroBatches) -> WindowsDataModule:
    data = WindowsDataModule(
        shards,
        recipe.data,
        seed=recipe.seed,
        sequences_per_step=recipe.sequences_per_step,
        micro_batch_size=batches.size,
        total_steps=recipe.total_steps,
    )
    data.whole_batches = hardware.compiles()
    return data


def _choose_forms(model: GPT, hardware: Hardware, batches: MicroBatches) -> None:
    model.use(
        attention=hardware.attention,
        activation_checkpointing=hardware.activation_checkpointing,
        logits_at_once=batches.logits_at_once,
    )


def _origin(source: tuple[Path, Checkpoint], step: int, total_steps: int) -> str:
    weights_of = "the weights of " if source[1].training is None else ""
    return f"continuing from {weights_of}{source[0]} at step {step:,} of {total_steps:,}"


def _headline(recipe: Recipe, record: Record, batches: MicroBatches) -> str:
    steps, warmup = recipe.total_steps, recipe.schedule.warmup_steps
    mostly = f" ({warmup:,} of them warm-up, schedule.warmup_steps)" if 2 * warmup > steps else ""
    return (
        f"{record.name}: {recipe.model.n_params:,} parameters, {steps:,} steps{mostly} of "
        f"{recipe.batch_tokens:,} tokens, context {recipe.data.context_length}, {batches}, in {record.output}"
    )


def _data_read(step: int, recipe: Recipe, data: WindowsDataModule, shards: ShardFolder) -> dict[str, Any]:
    """Return what a checkpoint records about its data: the tokens' identity, and how many were read."""
    blocks = step * recipe.batch_tokens // recipe.data.block_tokens
    return {
        "blocks": blocks,
        "epochs": blocks / data.mixture.n_blocks,
        "mixture": data.mixed_blocks,
        "fingerprint": shards.manifest.fingerprint,
        "shards": shards.address,
        "corpora": shards.manifest.training_corpora(),
    }


def _observers(
    recorder: RecordMetrics, recipe: Recipe, hardware: Hardware, record: Record, console: Console
) -> list[pl.Callback]:
    """Return our callbacks that only observe the run, in the required order."""
    observers = [recorder, StepProgress(console, recipe.total_steps, recorder, compiles=hardware.compiles())]
    if record.trainer.get("profiler") == TRACE:
        observers.append(ProfileSteps(console, recorder))
    return observers


def _refusal(
    error: TrainingError | torch.OutOfMemoryError,
    batches: MicroBatches,
    writer: BackgroundWriter,
    record: Record,
    ranks: Ranks,
) -> Refusal:
    """Return the error of a run that can't continue, which also names the checkpoint that remains."""
    own = isinstance(error, NotCompiledError | torch.OutOfMemoryError)  # possibly on this rank only
    if not own or ranks.world_size == 1:
        writer.wait()
    last = record.output / LAST
    remains = f"{last} is kept" if last.exists() else "no checkpoint was due yet"
    cause = out_of_memory(batches) if isinstance(error, torch.OutOfMemoryError) else error
    refusal = TrainingError(f"{cause}; {remains}")
    return refusal if own else ranks.alike(refusal)
