"""A Lightning data module that turns shards into batches."""

import time
from collections.abc import Iterator
from functools import partial

import lightning.pytorch as pl
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from gptstar.data.config import DataConfig
from gptstar.data.order.training_data import training_data, validation_data
from gptstar.data.order.windows import BLANK, StepSampler, Windows
from gptstar.data.storage.prefetch import PLANNED_SHARE, BatchesAhead, Span
from gptstar.data.storage.shards import ShardFolder


class WindowsDataModule(pl.LightningDataModule):
    """Loads training windows in the order of the run, and each corpus's validation windows in the order of the text.

    Args:
        sequences_per_step: number of windows in a global batch.
        micro_batch_size: number of windows that a rank reads at once.

    Attributes:
        whole_batches: fill the last validation batch with blank windows, because a compiled model takes one shape only.
        start_step: the step at which a run starts or resumes; with the seed, this is the whole state of the data.
        mixed_blocks: number of blocks of each corpus in one pass through the mixture.
    """

    def __init__(
        self,
        folder: ShardFolder,
        config: DataConfig,
        *,
        seed: int,
        sequences_per_step: int,
        micro_batch_size: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.whole_batches, self.start_step = False, 0
        self._config, self._micro_batch_size, self._cache = config, micro_batch_size, folder.cache
        self.training, self.mixture, self.mixed_blocks = training_data(folder, config)
        self.validation = validation_data(folder, config)
        self._sampler = partial(
            StepSampler,
            self.training,
            self.mixture,
            seed=seed,
            sequences_per_step=sequences_per_step,
            micro_batch_size=micro_batch_size,
            total_steps=total_steps,
        )

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Load this rank's micro-batches `(sequence, context_length + 1)`, from the start step to the last step."""
        rank, world_size = self._place()
        sampler = self._sampler(start_step=self.start_step, rank=rank, world_size=world_size)
        if self._cache is None:
            return self._loader(self.training, sampler)
        ranks_here = max(1, self.trainer.num_devices) if self.trainer else 1
        budget = int(PLANNED_SHARE * self._config.cache_bytes / ranks_here)
        return self._loader(self.training, BatchesAhead(sampler, self._spans, self._cache, budget))

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Make one loader per corpus, which reads the same tokens at every context length."""
        rank, world_size = self._place()
        loaders: list[DataLoader[Tensor]] = []
        for windows in self.validation.values():
            blocks = min(windows.n_blocks, self._config.validation_tokens // self._config.block_tokens)
            numbers = np.arange(blocks * windows.windows_per_block)
            size = self._micro_batch_size
            # All ranks compute the same number of batches, so that none waits for another forever.
            padding = -len(numbers) % (world_size * (size if self.whole_batches else 1))
            numbers = np.append(numbers, np.full(padding, BLANK))[rank::world_size].tolist()
            loaders.append(self._loader(windows, [numbers[i : i + size] for i in range(0, len(numbers), size)]))
        return loaders

    def _place(self) -> tuple[int, int]:
        """Return this process's rank, and how many ranks there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _spans(self, numbers: list[int]) -> list[Span]:
        tokens, length = self.training.tokens, self.training.context_length + 1
        return [span for start in self.training.starts(numbers).tolist() for span in tokens.spans(start, length)]

    def _loader(self, windows: Windows, batches: StepSampler | BatchesAhead | list[list[int]]) -> "TimedLoader":
        return TimedLoader(
            windows,
            batch_sampler=batches,
            collate_fn=default_convert,  # a batch of windows is one tensor already
            num_workers=self._config.loader_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )


class TimedLoader(DataLoader[Tensor]):
    """A loader that measures how long its consumer waits for batches.

    Attributes:
        waited: seconds between requests for batches and their arrival, summed over all batches.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            requested = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - requested
            if batch is None:
                return
            yield batch
