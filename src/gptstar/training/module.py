"""Windows to loss: the LightningModule around a plain PyTorch model."""

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
"""Steps in a row."""


class LanguageModelling(pl.LightningModule):
    """Next-token prediction.

    Everything random or scheduled is a function of the step, so a run that stops and goes on is the run that never
    stopped.

    Args:
        beginning: the model, and the state of its optimizer and of its average.
        recipe: resolved. With `data.attention` within documents, a position belongs to the document whose number is
            that of the end-of-text tokens before it. Where `data.has_gaps`, negative targets count for nothing, and a
            step's loss and gradient are means over the targets that all its micro-batches on all ranks hold together.
        hardware: whether to compile, what to compute in, and whether each rank has a part of the model.
        tracker: whether to measure a gradient norm for each block as well.
        tokenizer: the text's: end-of-text, and the bytes of text behind each token.
        corpora: names of the validation loaders, in order.

    Attributes:
        length: tokens of context in the last optimizer step.
        validates_first: whether a validation comes before the first step of this process.
        step_metrics: of the last optimizer step.
        validation_metrics: of the last validation.
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
        """Whether a micro-batch, counted from where this process began, is the last of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def configure_model(self) -> None:
        """Give this rank its part of the model, and of the optimizer's state."""
        if self._materialise is not None and not isinstance(self.model, FSDPModule):
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"], bf16_weights=self._bf16_weights)
            self.model.to_empty(device=self.trainer.strategy.root_device)
            self._optimizer_state, self._saved_average = self._materialise(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Its state restored where the run goes on."""
        optimizer = self.recipe.optimizer.build(self.model)
        self.recipe.optimizer.restore(optimizer, self.model, self._optimizer_state)
        self._optimizer_state = {}
        return optimizer

    @cached_property
    def _computing(self) -> GPT:
        """The model, or its copy in bfloat16; made at its first use, when the model is on its device.

        A cached property, so that PyTorch does not take it for a second submodule. One in parts casts as it gathers.
        """
        if self._bf16_weights and self._materialise is None:
            self._working_copy = WorkingCopy(self.model)
        computing = self._working_copy.model if self._working_copy else self.model
        if self._n_graphs:
            compile_model(computing, n_shapes=self._n_graphs, by_block=self._materialise is not None)
        return computing

    @cached_property
    def average(self) -> RunningAverage:
        """The average of the weights; made at its first use, as `_computing`."""
        saved, self._saved_average = self._saved_average, {}
        return RunningAverage(self.recipe.averaging, self.model, saved)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the working copy and the average know."""
        step = self.global_step + 1
        super().optimizer_step(*args, **kwargs)
        self._refresh_copy()
        self.average.update(step)

    def _refresh_copy(self) -> None:
        if self._working_copy is not None:
            self._working_copy.refresh()

    def weights(self) -> dict[str, Tensor]:
        """The model's; of one in parts this rank's."""
        self._reshard()
        return self.model.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """State by parameter name: of the optimizer, or before there is one what it will be given; as `weights`."""
        optimizers = self.trainer.optimizers
        if not optimizers:
            return self._optimizer_state
        self._reshard()
        return state_by_name(optimizers[0], self.model)

    def _reshard(self) -> None:
        """A validation leaves the last parameters that it gathered, which no optimizer knows."""
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def on_train_start(self) -> None:
        """Validate first if the run was interrupted before it could, as part of the fit, where callbacks see it."""
        if self.validates_first:
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Begin a step: dropout's seed is a function of seed, step and rank, so there is no state of it to save."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            sequence = np.random.SeedSequence((self.recipe.seed, self.global_step, self.global_rank))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            self._step_loss = torch.zeros((), device=self.device)
            self._step_share = torch.zeros((), device=self.device)

    def _loss(self, windows: Tensor, reduction: Literal["none", "sum"]) -> Tensor:
        """`(sequence, context_length + 1)` → the loss of each target, nats, 0 where there is none; or their sum."""
        inputs, targets = inputs_of(windows[:, :-1]), windows[:, 1:]
        documents = self._documents(inputs)
        with self._compiled_call():
            return self._computing(inputs, targets, documents=documents, reduction=reduction)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass, which a compiler may compile only now."""
        with self._compiled_call():
            super().backward(loss, *args, **kwargs)

    def _compiled_call(self) -> contextlib.AbstractContextManager[None]:
        return compiled_call() if self._n_graphs else contextlib.nullcontext()

    def _documents(self, inputs: Tensor) -> Tensor | None:
        """`(sequence, position)`: the number of end-of-text tokens before each position, or None."""
        if self._end_of_text is None:
            return None
        ends = (inputs == self._end_of_text).long()
        return ends.cumsum(dim=1) - ends

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        """`(sequence, context_length + 1)` → mean loss over all positions, nats a token.

        Positions without a target count as 0 here; the mean over those with one is made when the step ends.
        """
        self.length = self.recipe.curriculum.length(self.global_step, windows.shape[1] - 1)
        windows = folded(windows, self.length)
        loss = self._loss(windows, "sum") / windows[:, 1:].numel()
        self._step_loss += loss.detach() / self.trainer.accumulate_grad_batches
        if self._fill:
            self._step_share += (windows[:, 1:] >= 0).float().mean() / self.trainer.accumulate_grad_batches
        return loss

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Set the learning rate, measure and clip the gradient, and refuse one that is not finite.

        Raises:
            TrainingError: loss or gradient is nan or infinite, and not to be skipped, or goes on so; the weights are
                still those of the step before.
        """
        step = self.global_step
        rate = self.recipe.optimizer.learning_rate * self.recipe.schedule.fraction(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        mean_loss = self.trainer.strategy.reduce(self._step_loss, reduce_op="mean")
        if self._fill:
            # Micro-batches differ in how many targets they hold, so each was weighed by its positions till now.
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
        """All ranks see the same loss and norm, so all do the same."""
        self._skipped_in_a_row += 1
        said = f"step {step}: the loss is {loss:g} and the gradient's norm {gradient_norm:g}"
        if self.recipe.on_nonfinite == "stop":
            remedy = NO_ANSWER if self._fill and not self._step_share else STEADIER
            raise TrainingError(f"{said}: {remedy}, or on_nonfinite=skip")
        if self._skipped_in_a_row == MOST_SKIPPED:
            raise TrainingError(f"{said}, and {MOST_SKIPPED} steps in a row were skipped: nothing is learned any more")
        self.model.zero_grad()  # to None: what has no gradient, AdamW leaves alone
        self.step_metrics = {"skipped": 1.0}

    def _show(self, metrics: dict[str, float]) -> None:
        """Let callbacks see metrics under Lightning's own roof; `RecordMetrics` is what sends them to loggers."""
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
        """Begin the sums of each corpus."""
        self._validation = ValidationSums(self.corpora, self._token_bytes)

    def validation_step(self, windows: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`(sequence, context_length + 1)` of one corpus: add to its sums, by the last weights and averaged ones."""
        losses, averaged = self._loss(windows, "none"), None
        if self.average.tensors:
            with self._averaged_weights():
                averaged = self._loss(windows, "none")
        self._validation.add(dataloader_idx, windows[:, 1:], losses, averaged)

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Compute with averaged weights, whole or in parts, and with the last ones again."""
        self._reshard()
        with self.average.swapped():
            self._refresh_copy()
            yield
            self._reshard()
        self._refresh_copy()

    def on_validation_epoch_end(self) -> None:
        """Make metrics of the sums of all ranks.

        Raises:
            TrainingError: the loss is not finite, so neither are the weights, or what they compute; all ranks see it.
        """
        sums = self.trainer.strategy.reduce(self._validation.sums, reduce_op="sum").cpu()
        self.validation_metrics = self._validation.metrics(sums, averaged=bool(self.average.tensors))
        if not math.isfinite(loss := self.validation_metrics.get("validation/loss", 0.0)):
            raise TrainingError(
                f"step {self.global_step}: the validation loss is {loss:g}: {STEADIER}, or more schedule.warmup_steps"
            )
        self._show(self.validation_metrics)
