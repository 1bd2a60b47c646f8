"""Writing checkpoints while training goes on."""

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
    """Copies what is to be saved and writes the copy in a thread, one checkpoint at a time.

    A model that each rank has whole becomes a file, which the first rank writes; one in parts becomes a folder, to
    which all of them write.

    Args:
        folder: the run directory.
        keep: how many of the newest checkpoints are kept, beside the best.
        evaluated_every: steps between checkpoints that are kept until they are evaluated.
    """

    def __init__(
        self, folder: Path, *, keep: int, evaluated_every: int | None = None, ranks: Ranks, sharded: bool
    ) -> None:
        self._folder, self._keep, self.ranks, self._sharded = folder, keep, ranks, sharded
        self._evaluated_every = evaluated_every
        self._apart = ranks.apart()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank already knows that a checkpoint can't be written; `wait` says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save(self, checkpoint: Checkpoint, step: int, *, best: bool) -> None:
        """Begin to write a checkpoint, once the one before is written; all ranks have to.

        Raises:
            CheckpointError: the one before can't be written.
        """
        self.wait()
        write_copy = self._writes(checkpoint)
        if write_copy is not None:
            self._pending = self._thread.submit(self._write, write_copy, of_step(self._folder, step), best)

    def wait(self) -> None:
        """Until what was begun is written; all ranks have to.

        Raises:
            CheckpointError: it can't be, as on a full disk; what was saved before stands.
            RefusedElsewhere: another rank's can't be.
        """
        pending, self._pending = self._pending, None
        self.ranks.together(lambda: pending.result() if pending else None)

    def _writes(self, checkpoint: Checkpoint) -> Callable[[Path], None] | None:
        """What this rank has to do for a path, on a copy of the tensors."""
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
            return lambda path: write_parts(path, copied, self._apart)
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
