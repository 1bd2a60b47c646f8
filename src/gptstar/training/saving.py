"""Writing of checkpoints in the background, while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gptstar.checkpoint.format import Checkpoint, write
from gptstar.checkpoint.kept import BEST, LAST, link, of_step, prune
from gptstar.ranks import Ranks


class BackgroundWriter:
    """Writer of checkpoints that copies the tensors and writes the copy in a thread, one checkpoint at a time.

    A model that is not sharded becomes a file, which the first rank writes. A sharded model becomes a folder, to which
    all ranks write.

    Args:
        folder: the run directory.
        keep: the number of newest checkpoints to keep, in addition to the best.
        evaluated_every: the number of steps between checkpoints that are kept until they are evaluated.
        ranks: the ranks of the run.
        sharded: whether the model is sharded over ranks.
    """

    def __init__(
        self, folder: Path, *, keep: int, evaluated_every: int | None = None, ranks: Ranks, sharded: bool
    ) -> None:
        self._folder, self._keep, self.ranks, self._sharded = folder, keep, ranks, sharded
        self._evaluated_every = evaluated_every
        self._thread_ranks = ranks.with_own_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether writing has failed on this rank; `wait` raises the reason."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save(self, checkpoint: Checkpoint, step: int, *, best: bool) -> None:
        """Begin to write a checkpoint after the previous one is written; all ranks must call this.

        Raises:
            CheckpointError: the previous checkpoint can't be written.
        """
        self.wait()
        write_copy = self._writes(checkpoint)
        if write_copy is not None:
            self._pending = self._thread.submit(self._write, write_copy, of_step(self._folder, step), best)

    def wait(self) -> None:
        """Wait until the pending checkpoint is written; all ranks must call this.

        Raises:
            CheckpointError: it can't be written, for instance because the disk is full; earlier checkpoints remain.
            RefusedElsewhere: another rank can't write its part.
        """
        pending, self._pending = self._pending, None
        self.ranks.together(lambda: pending.result() if pending else None)

    def _writes(self, checkpoint: Checkpoint) -> Callable[[Path], None] | None:
        """Return a function that writes this rank's copy of the tensors to a path; None if this rank writes nothing."""
        training = checkpoint.training
        assert training is not None
        states: dict[str, Any] = {
            "weights": checkpoint.weights,
            "averaged": checkpoint.averaged,
            "optimizer": training.optimizer,
        }
        if self._sharded:
            from torch.distributed.checkpoint.staging import BlockingAsyncStager

            from gptstar.checkpoint.parts import write_parts

            states = BlockingAsyncStager().stage(states)
            copied = _with(checkpoint, **states)
            return lambda path: write_parts(path, copied, self._thread_ranks)
        if not self.ranks.first:
            return None
        copied = _with(
            checkpoint,
            weights=_copied(checkpoint.weights),
            averaged=_copied(checkpoint.averaged),
            optimizer={name: _copied(state) for name, state in training.optimizer.items()},
        )
        return lambda path: write(path, copied)

    def _write(self, write_copy: Callable[[Path], None], path: Path, best: bool) -> None:
        write_copy(path)
        if self.ranks.first:
            if best:
                link(path, BEST)
            link(path, LAST)
            prune(self._folder, self._keep, self._evaluated_every)


def _with(
    checkpoint: Checkpoint,
    weights: dict[str, Tensor],
    averaged: dict[str, Tensor],
    optimizer: dict[str, dict[str, Tensor]],
) -> Checkpoint:
    assert checkpoint.training is not None
    training = replace(checkpoint.training, optimizer=optimizer)
    return replace(checkpoint, weights=weights, averaged=averaged, training=training)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
