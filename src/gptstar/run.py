"""A training run, from its configuration to its results, in the order in which things happen."""

import contextlib
from typing import Any

import torch
from rich.console import Console

from gptstar.checkpoint.kept import LAST
from gptstar.config import TrainConfig
from gptstar.data.datamodule import WindowsDataModule
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.errors import ConfigError, TrainingError
from gptstar.ranks import joined
from gptstar.training.benchmarks import EvaluateTasks
from gptstar.training.checkpoints import SaveCheckpoints, is_trial
from gptstar.training.compiling import NotCompiledError
from gptstar.training.memory import keep_freed_memory, stay_within_own_part
from gptstar.training.metrics import RecordMetrics
from gptstar.training.micro_batch import agreed_micro_batches, out_of_memory
from gptstar.training.module import LanguageModelling
from gptstar.training.options import TRACE, lightning_options
from gptstar.training.profile import ProfileSteps
from gptstar.training.progress import StepProgress
from gptstar.training.report import conclude
from gptstar.training.resume import begin, read_for
from gptstar.training.run_directory import RunDirectory
from gptstar.training.saving import BackgroundWriter
from gptstar.training.status import is_finished
from gptstar.training.tracker import describe_run, tracked
from gptstar.training.trainer import build_trainer, fast_forward, fit


def train(config: TrainConfig, config_yaml: str) -> None:
    """Run to the last step, or go on to it, and conclude.

    Args:
        config_yaml: the composed configuration as text, for the run directory.

    Raises:
        Refusal: whatever the user can put right; what was saved before stands.
    """
    device_type = config.hardware.device().type
    if device_type == "cpu":
        keep_freed_memory()
    with (
        joined(device_type) as ranks,
        RunDirectory(config.output, ranks) as directory,
        contextlib.ExitStack() as until_the_end,
    ):
        config.hardware.check_world(ranks.world_size)
        if device_type == "cuda":
            stay_within_own_part()
        console = Console(quiet=not ranks.first)
        if config.resume == "auto" and ranks.agreed(lambda: is_finished(directory.path, config_yaml)):
            console.print(f"{directory.path} is finished already", highlight=False, soft_wrap=True)
            return
        shards = ranks.in_turn(lambda: ensure_prepared(config.data, config.model.n_vocab, console))
        sharded = config.hardware.sharded

        def warn(text: str) -> None:
            console.print(f"warning: {text}", style="yellow", soft_wrap=True, highlight=False)

        source = directory.start_from(
            str(config.branch_from or config.resume), lambda path: read_for(path, ranks, sharded=sharded), warn
        )
        saved = source[1].training.machine if source and source[1].training else {}
        workload = config.workload(on_gpu=device_type == "cuda")
        batches = agreed_micro_batches(config.hardware, workload, config.sequences_per_device, saved, ranks, warn)
        data = WindowsDataModule(
            shards,
            config.data,
            seed=config.seed,
            sequences_per_step=config.sequences_per_step,
            micro_batch_size=batches.size,
            total_steps=config.total_steps,
            whole_batches=config.hardware.compiles(),
        )
        settings = config.settings() | {f"data.mixture.{name}": blocks for name, blocks in data.mixed_blocks.items()}
        beginning = ranks.together(
            lambda: begin(
                source,
                config.model,
                seed=config.seed,
                settings=settings,
                shards=shards,
                folder=directory.path,
                sharded=sharded,
                branches=config.branch_from is not None,
            )
        )
        model, state = beginning.model, beginning.state
        model.use(
            attention=config.hardware.attention,
            activation_checkpointing=config.hardware.activation_checkpointing,
            logits_at_once=batches.logits_at_once,
        )
        data.start_step = state.step
        if state.step > config.total_steps:
            raise ranks.alike(
                ConfigError(
                    f"total_steps={config.total_steps} is behind {source and source[0]}, which is at step "
                    f"{state.step}: give more steps, or another output"
                )
            )
        if source is not None:
            console.print(f"going on from {source[0]} at step {state.step:,} of {config.total_steps:,}", soft_wrap=True)
        console.print(
            f"{config.name}: {config.model.n_params:,} parameters, {config.total_steps:,} steps of "
            f"{config.batch_tokens:,} tokens, context {config.data.context_length}, {batches}, in {directory.path}",
            highlight=False,
            soft_wrap=True,
        )

        module = LanguageModelling(
            model,
            optimizer=config.optimizer.resolved(config.hardware.resolved_precision()),
            schedule=config.schedule.resolved(config.total_steps),
            curriculum=config.curriculum.resolved(config.data.context_length, config.total_steps),
            seed=config.seed,
            token_bytes=shards.tokenizer.token_bytes,
            corpora=list(data.validation),
            gradient_norms=config.tracker.gradient_norms,
            end_of_text=shards.tokenizer.end_of_text if config.data.attention == "within" else None,
            fill=config.data.windows == "documents",
            optimizer_state=dict(state.optimizer),
            bf16_weights=config.hardware.resolved_precision() == "bf16_weights",
            n_graphs=config.curriculum.n_lengths(config.data.context_length) + 1 if config.hardware.compiles() else 0,
            skips_nonfinite=config.on_nonfinite == "skip",
            materialise=beginning.materialise,
        )
        if not sharded:
            state.optimizer.clear()  # twice the model's size

        def describe(step: int) -> dict[str, dict[str, Any]]:
            blocks = step * config.batch_tokens // config.data.block_tokens
            seen = {"blocks": blocks, "epochs": blocks / data.mixture.n_blocks, "mixture": data.mixed_blocks}
            whose = {"fingerprint": shards.manifest.fingerprint, "shards": shards.address}
            corpora = {"corpora": shards.manifest.training_corpora()}
            machine = batches.as_dict(ranks.world_size)
            return {"settings": settings, "data": whose | seen | corpora, "machine": machine}

        writer = BackgroundWriter(directory.path, keep=config.checkpoint_keep, ranks=ranks, sharded=sharded)
        saver = SaveCheckpoints(
            directory.path,
            writer,
            every=config.checkpoint_every,
            validate_every=config.validate_every,
            total_steps=config.total_steps,
            tokenizer=shards.tokenizer.json_text,
            describe=describe,
            validated_step=state.validated_step,
            best_loss=state.best_loss,
        )
        recorder = RecordMetrics(
            log_every=config.log_every,
            batch_tokens=config.batch_tokens,
            total_steps=config.total_steps,
            flops_per_token=config.model.training_flops,
            peak_flops=config.hardware.peak_flops(),
        )
        evaluator = EvaluateTasks(
            config.evaluation,
            shards.tokenizer,
            name=config.name,
            total_steps=config.total_steps,
            recorder=recorder,
            console=console,
        )
        evaluators = [evaluator] if config.evaluation.every_n_steps else []
        progress = StepProgress(console, config.total_steps, recorder, compiles=config.hardware.compiles())
        profilers = [ProfileSteps(console, recorder)] if config.trainer.get("profiler") == TRACE else []
        loggers = until_the_end.enter_context(tracked(config.tracker, directory.path, config.name, state.step, console))
        trainer = build_trainer(
            config.hardware,
            folder=directory.path,
            total_steps=config.total_steps,
            accumulate=batches.accumulate,
            validate_every=config.validate_every,
            loggers=loggers,
            callbacks=[recorder, progress, *profilers, *evaluators, saver],
            options=lightning_options(config.trainer),
        )
        directory.describe(config_yaml, shards.manifest.fingerprint)
        if ranks.first:
            describe_run(loggers, directory.path, shards.manifest)
        fast_forward(trainer, state.step)
        try:
            fit(trainer, module, data, saver)
            writer.wait()
        except (TrainingError, torch.OutOfMemoryError) as error:
            own = isinstance(error, NotCompiledError | torch.OutOfMemoryError)  # perhaps this rank's alone
            if not own or ranks.world_size == 1:
                writer.wait()
            last = directory.path / LAST
            kept = f"{last} is kept" if last.exists() else "no checkpoint was due yet"
            said = out_of_memory(batches) if isinstance(error, torch.OutOfMemoryError) else error
            refusal = TrainingError(f"{said}; {kept}")
            raise (refusal if own else ranks.alike(refusal)) from error
        finally:
            saver.stop_listening()
        saver.leave_if_asked(trainer)
        if trainer.global_step < config.total_steps and not is_trial(trainer):
            console.print(f"stopped at step {trainer.global_step:,}; output={directory.path} goes on", soft_wrap=True)
        elif trainer.is_global_zero and not is_trial(trainer):
            conclude(
                directory.path,
                shards,
                name=config.name,
                report=config.report,
                reading=config.reading,
                context_length=config.data.context_length,
                extrapolates=config.model.positions.extrapolates,
                validation_tokens=config.data.validation_tokens,
                device=trainer.strategy.root_device,
                bf16=config.hardware.resolved_precision() != "float32",
                console=console,
                loggers=loggers,
            )
            directory.finished()
