"""Saving of checkpoints: at intervals, at the best validation loss, and when a signal stops the run."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gptstar.checkpoint.format import Checkpoint, TrainingState
from gptstar.errors import PREEMPTED, Interrupted
from gptstar.training.callbacks import UserCallbacks
from gptstar.training.module import LanguageModelling
from gptstar.training.record import Record
from gptstar.training.saving import BackgroundWriter


def is_trial(trainer: pl.Trainer) -> bool:
    """Whether this is a trial of a few batches (`fast_dev_run`), which saves nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


class SaveCheckpoints(LightningCheckpoint):
    """Lightning callback that saves checkpoints into the run directory.

    A step with a validation is saved after it, so that a resumed run need not repeat the validation. A checkpoint with
    a new best loss also becomes `last.ckpt`.

    Args:
        writer: the writer of the run directory's checkpoints.
        record: how often to save and to validate.
        tokenizer: the tokenizer's JSON, to store with the model.
        describe: a function that returns the settings and the data to store for a step.
        callbacks: the user's callbacks, whose state is restored and stored.
        state: the state from which the run starts or resumes.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR2 arrived; raised within the training loop after the run was saved.
    """

    def __init__(
        self,
        writer: BackgroundWriter,
        record: Record,
        tokenizer: str,
        describe: Callable[[int], dict[str, dict[str, Any]]],
        callbacks: UserCallbacks,
        state: TrainingState,
    ) -> None:
        self._writer, self._record = writer, record
        self._tokenizer, self._describe, self._callbacks = tokenizer, describe, callbacks
        self._began_at, self._ended = state.step, state.ended
        self._states: dict[str, Any] | None = state.callbacks
        self.validated_step, self.best_loss = state.validated_step, state.best_loss
        self._saved_step = 0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the state of the user's callbacks after their own `setup`, as Lightning does."""
        states, self._states = self._states, None
        if states is not None:  # a validation after the fit calls `setup` again
            self._writer.ranks.together(lambda: self._callbacks.restore(states, self._ended))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle signals at the end of a batch from now on. A second SIGINT raises KeyboardInterrupt at once."""
        self.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handler, which would communicate with the other ranks out of turn."""
        self.listen()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle signals during a validation outside of training, too."""
        if not trainer.training:
            self.listen()

    def listen(self) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM, PREEMPTED):
            before = signal.signal(number, self._receive)
            self._handlers.setdefault(number, before)

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def stop_listening(self) -> None:
        """Restore the signal handlers from before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Save a checkpoint at the end of a step, if one is due and no validation comes first."""
        assert isinstance(pl_module, LanguageModelling)
        validation_follows = trainer.enable_validation and self.validation_due(trainer)
        ended = pl_module.step_ended(batch_idx)
        if ended and self._due(trainer) and not validation_follows:
            self._save(trainer, pl_module)
        if ended or trainer.world_size == 1:  # not at every micro-batch: the ranks have to communicate
            self._stop_if_asked(trainer, pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Handle a signal without waiting for the end of the validation."""
        self._stop_if_asked(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the step if its loss is the best so far, or if a checkpoint is due."""
        assert isinstance(pl_module, LanguageModelling)
        if trainer.sanity_checking or is_trial(trainer):
            return
        self.validated_step = trainer.global_step
        loss = pl_module.validation_metrics.get("validation/loss")
        if loss is not None and (self.best_loss is None or loss < self.best_loss):
            self.best_loss = loss
            self._save(trainer, pl_module, best=True)
        elif self._due(trainer) or trainer.global_step == self._began_at or trainer.state.fn == TrainerFn.VALIDATING:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step, because `trainer.max_time` may stop training at any step."""
        if self._saved_step != trainer.global_step:
            self._save(trainer, pl_module)

    def _due(self, trainer: pl.Trainer) -> bool:
        evaluated_every = self._record.evaluation.every_n_steps
        is_evaluated = evaluated_every is not None and trainer.global_step % evaluated_every == 0
        return is_evaluated or _is_due(trainer, self._record.checkpoint_every)

    def validation_due(self, trainer: pl.Trainer) -> bool:
        """Whether the step that just ended gets a validation: at intervals, and at the last step."""
        return _is_due(trainer, self._record.validate_every)

    def _stop_if_asked(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = self._signal is not None or self._writer.failed
        if not trainer.strategy.reduce_boolean_decision(ends, all=False):
            return
        self._writer.wait()
        self._save(trainer, pl_module)
        self._writer.wait()
        self._signal = self._signal or signal.SIGTERM  # the signal reached another rank
        self.leave_if_asked(trainer)

    def leave_if_asked(self, trainer: pl.Trainer) -> None:
        """Stop the run if a signal arrived; the caller has saved everything.

        Raises:
            Interrupted: a signal arrived; the message names it, the step, and how to continue.
        """
        if (number := self._signal) is None:
            return
        output, tracker = self._record.output, self._record.tracker
        is_in_sweep = (tracker.group, tracker.run_name) == (
            output.parent.name,
            output.name,
        )  # as sweeps name their jobs
        raise Interrupted(
            f"{signal.Signals(number).name} at step {trainer.global_step} of {trainer.max_steps}: saved; "
            f"to continue, repeat the command with output={output.parent if is_in_sweep else output}",
            128 + number,
        )

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, best: bool = False) -> None:
        if is_trial(trainer):
            return
        assert isinstance(pl_module, LanguageModelling)
        model, step = pl_module.model, trainer.global_step
        training = TrainingState(
            step=step,
            validated_step=self.validated_step,
            best_loss=self.best_loss,
            optimizer=pl_module.optimizer_state(),
            callbacks=self._callbacks.states(),
            ended=self._callbacks.ending(trainer),
            **self._describe(step),
        )
        averaged = dict(pl_module.average.tensors)
        checkpoint = Checkpoint(model.config, pl_module.weights(), self._tokenizer, training, averaged)
        self._writer.save(checkpoint, step, best=best)
        self._saved_step = step


def _is_due(trainer: pl.Trainer, every: int) -> bool:
    return trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps
