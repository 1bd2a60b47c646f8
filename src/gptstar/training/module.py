"""The LightningModule around a plain PyTorch model: from windows of tokens to losses and metrics."""

import contextlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grad_norm_, get_total_norm

from gptstar.data.order.windows import inputs_of
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import TrainingError
from gptstar.model import GPT
from gptstar.training.averaging import RunningAverage
from gptstar.training.compiling import compile_model, compiled_call
from gptstar.training.curriculum import folded
from gptstar.training.hardware import Hardware
from gptstar.training.optimizers import state_by_name
from gptstar.training.recipe import Recipe
from gptstar.training.resume import Beginning
from gptstar.training.sharding import full_tensor, shard
from gptstar.training.tracker import Tracker
from gptstar.training.validation import ValidationSums
from gptstar.training.working_copy import WorkingCopy

STEADIER = "try a lower optimizer.learning_rate, hardware.precision=float32"
NO_ANSWER = "no answer to a query (data.query_mark) is in this step: raise batch_tokens, choose a more frequent mark"
MOST_SKIPPED = 10
"""The number of skipped steps in a row at which training stops."""


class LanguageModelling(pl.LightningModule):
    """Training of a model on next-token prediction.

    All randomness and all schedules are functions of the step, so an interrupted and resumed run equals one that was
    never interrupted.

    Args:
        beginning: the model, with the state of its optimizer and its averaged weights.
        recipe: the resolved recipe. If `data.attention` stays within documents, each end-of-text token ends one. If
            `data.has_gaps`, positions with negative targets have no loss, and a step's loss and gradient are means over
            the targets of all its micro-batches on all ranks.
        hardware: the precision, whether to compile, and whether the model is sharded over ranks.
        tracker: whether to measure a gradient norm per block.
        tokenizer: the tokenizer of the text, for the end-of-text token and the bytes per token.
        corpora: the corpora of the validation loaders, in order.

    Attributes:
        length: the context length of the last optimizer step, in tokens.
        validates_first: whether this process begins with a validation.
        step_metrics: metrics of the last optimizer step.
        validation_metrics: metrics of the last validation.
    """

    _token_bytes: Tensor

    def __init__(
        self,
        beginning: Beginning,
        recipe: Recipe,
        hardware: Hardware,
        tracker: Tracker,
        tokenizer: Tokenizer,
        corpora: list[str],
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.corpora = beginning.model, recipe, corpora
        self.length, self.validates_first = 0, False
        self._tracker, self._optimizer_state = tracker, dict(beginning.state.optimizer)
        self._saved_average = beginning.averaged
        self._materialise = beginning.materialise
        self._end_of_text = tokenizer.end_of_text if recipe.data.attention == "within" else None
        self._fill = recipe.data.has_gaps
        self._bf16_weights = hardware.resolved_precision() == "bf16_weights"
        lengths = recipe.curriculum.n_lengths(recipe.data.context_length)
        self._n_graphs = lengths + 1 if hardware.compiles() else 0  # one for each length, and one for validation
        self._working_copy: WorkingCopy | None = None
        self._skipped_in_a_row = 0
        self.register_buffer("_token_bytes", torch.from_numpy(tokenizer.token_bytes), persistent=False)
        self._step_loss, self._step_share = torch.zeros(()), torch.zeros(())
        self.step_metrics: dict[str, float] = {}
        self.validation_metrics: dict[str, float] = {}

    def step_ended(self, batch_idx: int) -> bool:
        """Whether a micro-batch, counted from the start of this process, is the last of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def configure_model(self) -> None:
        """Shard the model, and load this rank's part of its weights and optimizer state."""
        if self._materialise is not None and not isinstance(self.model, FSDPModule):
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"], bf16_weights=self._bf16_weights)
            self.model.to_empty(device=self.trainer.strategy.root_device)
            self._optimizer_state, self._saved_average = self._materialise(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer, and restore its state if the run resumes."""
        optimizer = self.recipe.optimizer.build(self.model)
        self.recipe.optimizer.restore(optimizer, self.model, self._optimizer_state)
        self._optimizer_state = {}
        return optimizer

    @cached_property
    def _computing(self) -> GPT:
        """The model that computes: the master, or its bfloat16 copy; made at its first use, on the model's device.

        It is a cached property so that PyTorch does not register it as a second submodule. FSDP casts by itself.
        """
        if self._bf16_weights and self._materialise is None:
            self._working_copy = WorkingCopy(self.model)
        computing = self._working_copy.model if self._working_copy else self.model
        if self._n_graphs:
            compile_model(computing, n_shapes=self._n_graphs, by_block=self._materialise is not None)
        return computing

    @cached_property
    def average(self) -> RunningAverage:
        """The averaged weights; made at their first use, when the model is on its device."""
        saved, self._saved_average = self._saved_average, {}
        return RunningAverage(self.recipe.averaging, self.model, saved)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then the bfloat16 copy and the average."""
        step = self.global_step + 1
        super().optimizer_step(*args, **kwargs)
        self._refresh_copy()
        self.average.update(step)

    def _refresh_copy(self) -> None:
        if self._working_copy is not None:
            self._working_copy.refresh()

    def weights(self) -> dict[str, Tensor]:
        """Return the model's state dict; of a sharded model, this rank's part."""
        self._reshard()
        return self.model.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's state by parameter name (sharded: this rank's part), or the one it will start with."""
        optimizers = self.trainer.optimizers
        if not optimizers:
            return self._optimizer_state
        self._reshard()
        return state_by_name(optimizers[0], self.model)

    def _reshard(self) -> None:
        """Free the full parameters that a validation may leave gathered; the optimizer knows the shards only."""
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def on_train_start(self) -> None:
        """Run the validation that an interrupted run missed, as part of the fit, so that callbacks see it."""
        if self.validates_first:
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Begin a step: seed dropout by seed, step and rank, so that no random state has to be saved."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            sequence = np.random.SeedSequence((self.recipe.seed, self.global_step, self.global_rank))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            self._step_loss = torch.zeros((), device=self.device)
            self._step_share = torch.zeros((), device=self.device)

    def _loss(self, windows: Tensor, reduction: Literal["none", "sum"]) -> Tensor:
        """Return the losses of windows `(sequence, context_length + 1)` in nats, 0 without a target; or their sum."""
        inputs, targets = inputs_of(windows[:, :-1]), windows[:, 1:]
        documents = self._documents(inputs)
        with self._compiled_call():
            return self._computing(inputs, targets, documents=documents, reduction=reduction)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; it may be compiled only now, so compiler errors can arise here."""
        with self._compiled_call():
            super().backward(loss, *args, **kwargs)

    def _compiled_call(self) -> contextlib.AbstractContextManager[None]:
        return compiled_call() if self._n_graphs else contextlib.nullcontext()

    def _documents(self, inputs: Tensor) -> Tensor | None:
        """Return each position's document, `(sequence, position)`: the end-of-text tokens before it; or None."""
        if self._end_of_text is None:
            return None
        ends = (inputs == self._end_of_text).long()
        return ends.cumsum(dim=1) - ends

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        """Return the mean loss of windows `(sequence, context_length + 1)` in nats per token.

        Positions without a target count as 0 here; `configure_gradient_clipping` divides by the share with a target.
        """
        self.length = self.recipe.curriculum.length(self.global_step, windows.shape[1] - 1)
        windows = folded(windows, self.length)
        loss = self._loss(windows, "sum") / windows[:, 1:].numel()
        self._step_loss += loss.detach() / self.trainer.accumulate_grad_batches
        if self._fill:
            self._step_share += (windows[:, 1:] >= 0).float().mean() / self.trainer.accumulate_grad_batches
        return loss

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Set the learning rate, measure and clip the gradient, and skip or refuse a gradient that is not finite.

        Raises:
            TrainingError: loss or gradient is nan or infinite, and `on_nonfinite` is `stop` or too many steps were
                skipped in a row; the weights are still those of the previous step.
        """
        step = self.global_step
        rate = self.recipe.optimizer.learning_rate * self.recipe.schedule.fraction(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        mean_loss = self.trainer.strategy.reduce(self._step_loss, reduce_op="mean")
        if self._fill:
            # Micro-batches have different numbers of targets, so until here each was weighted by its positions.
            share = self._step_share = self.trainer.strategy.reduce(self._step_share, reduce_op="mean")
            mean_loss = mean_loss / share
            torch._foreach_div_([p.grad for p in self.model.parameters() if p.grad is not None], share)
        layers = self._layer_norms() if self._tracker.gradient_norms == "layers" else {}
        norm = clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.gradient_clipping or math.inf)
        loss, gradient_norm = torch.stack((mean_loss, full_tensor(norm))).tolist()
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self._skip(step + 1, loss, gradient_norm)
            return
        self._skipped_in_a_row = 0
        self.step_metrics = {
            "train/loss": loss,
            "train/perplexity": math.exp(min(loss, 700.0)),
            "learning_rate": rate,
            "gradient_norm": gradient_norm,
            **({"context_length": float(self.length)} if self.recipe.curriculum.first_length else {}),
            **layers,
        }
        self._show(self.step_metrics)

    def _skip(self, step: int, loss: float, gradient_norm: float) -> None:
        """Skip a step, or stop; all ranks have the same loss and norm, so all do the same."""
        self._skipped_in_a_row += 1
        line = f"step {step}: the loss is {loss:g} and the gradient's norm {gradient_norm:g}"
        if self.recipe.on_nonfinite == "stop":
            remedy = NO_ANSWER if self._fill and not self._step_share else STEADIER
            raise TrainingError(f"{line}: {remedy}, or on_nonfinite=skip")
        if self._skipped_in_a_row == MOST_SKIPPED:
            raise TrainingError(f"{line}, and {MOST_SKIPPED} steps in a row were skipped: {STEADIER}")
        self.model.zero_grad()  # sets gradients to None: the optimizer skips parameters without one
        self.step_metrics = {"skipped": 1.0}

    def _show(self, metrics: dict[str, float]) -> None:
        """Make metrics available to Lightning's callbacks; `RecordMetrics` sends them to the loggers."""
        for name, value in metrics.items():
            self.log(name, value, logger=False)

    def _layer_norms(self) -> dict[str, float]:
        return {
            f"gradient_norm/block_{number:02d}": full_tensor(
                get_total_norm([parameter.grad for parameter in block.parameters() if parameter.grad is not None])
            ).item()
            for number, block in enumerate(self.model.blocks)
        }

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of each corpus."""
        self._validation = ValidationSums(self.corpora, self._token_bytes)

    def validation_step(self, windows: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch's losses to the sums of its corpus, for the last weights and for averaged ones, if any."""
        losses, averaged = self._loss(windows, "none"), None
        if self.average.tensors:
            with self._averaged_weights():
                averaged = self._loss(windows, "none")
        self._validation.add(dataloader_idx, windows[:, 1:], losses, averaged)

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Use averaged weights within the context, then the last weights again."""
        self._reshard()
        with self.average.swapped():
            self._refresh_copy()
            yield
            self._reshard()
        self._refresh_copy()

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics from the sums of all ranks.

        Raises:
            TrainingError: the loss is not finite, because the weights or the activations are not; on all ranks alike.
        """
        sums = self.trainer.strategy.reduce(self._validation.sums, reduce_op="sum").cpu()
        self.validation_metrics = self._validation.metrics(sums, averaged=bool(self.average.tensors))
        if not math.isfinite(loss := self.validation_metrics.get("validation/loss", 0.0)):
            raise TrainingError(
                f"step {self.global_step}: the validation loss is {loss:g}: {STEADIER}, or more schedule.warmup_steps"
            )
        self._show(self.validation_metrics)
