"""A real run of `train.py`, and the same steps bare: what the training loop costs beside them."""

import threading
import time
from collections.abc import Sequence

import torch
from omegaconf import OmegaConf
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import register_optimizer_step_post_hook

from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.training.plan import free_device
from gptstar.training.run import train
from speed.job import Job, seconds_a_step, synchronise
from speed.peers.ours import trainee
from speed.steps import n_params, prompt_of

FOREVER = 1_000_000
"""Steps; the run is ended with its process."""

WARMUP = 2
"""Steps before the first round."""


class Gate:
    """Lets a training loop take some steps each time it is asked, and says how long they took.

    PyTorch calls it at the end of every optimizer's step, so all that lies between two steps is in the figure: metrics,
    log, progress, checkpoints' book-keeping, and the next batch.

    Args:
        steps: a round.
    """

    def __init__(self, steps: int, device: str) -> None:
        self._steps, self._device = steps, device
        self._shut, self._opened = threading.Semaphore(0), threading.Semaphore(0)
        self._left = WARMUP
        self._seconds = self._since = 0.0

    def stepped(self, *_: object) -> None:
        """A step has ended: after the last that was asked for, wait here."""
        self._left -= 1
        if self._left:
            return
        synchronise(self._device)
        self._seconds = (time.perf_counter() - self._since) / self._steps
        self._shut.release()
        self._opened.acquire()
        self._left, self._since = self._steps, time.perf_counter()

    def round(self) -> float:
        """Seconds a step, over the next steps."""
        self._shut.acquire()
        self._opened.release()
        self._shut.acquire()
        self._shut.release()  # it stays shut for the next round to open
        return self._seconds


def parse(overrides: Sequence[str], device: str) -> tuple[TrainConfig, str]:
    """The configuration of a run that neither ends, nor saves, nor validates while it is measured."""
    composed = compose(
        "train",
        [
            "output=run",
            "report=false",
            f"total_steps={FOREVER}",
            f"checkpoint_every={FOREVER}",
            f"validate_every={FOREVER}",
            f"hardware={'gpu' if device == 'cuda' else 'cpu'}",
            *overrides,
        ],
    )
    return TrainConfig.parse(composed), OmegaConf.to_yaml(composed, resolve=True)


def run(overrides: Sequence[str], steps: int, device: str) -> Job:
    """A run as `train.py` runs it: Lightning, loader, metrics, log and progress."""
    config, text = parse(overrides, device)
    gate = Gate(steps, device)
    register_optimizer_step_post_hook(gate.stepped)
    recipe = config.recipe
    return Job(
        gate.round,
        recipe.batch_tokens,
        main=lambda: train(recipe, config.hardware, config.record, text),
        n_params=recipe.model.n_params,
    )


def bare(overrides: Sequence[str], steps: int, device: str) -> Job:
    """As many micro-batches, of random tokens, with the same accumulation, clipping and optimizer, and nothing else."""
    config, _ = parse(overrides, device)
    precision = config.hardware.resolved_precision()
    batches, recipe = config.micro_batches(free_device(config.hardware)), config.recipe
    model, mean_loss, optimizer = trainee(
        recipe.model, recipe.optimizer, precision, device, logits_at_once=batches.logits_at_once
    )
    shape = batches.size, recipe.data.context_length + 1

    def step() -> None:
        for _ in range(batches.accumulate):
            windows = prompt_of(recipe.model.n_vocab, *shape, device)  # new ones: learnt by heart, they give denormals
            tokens, targets = windows[:, :-1], windows[:, 1:]
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                loss = mean_loss(tokens, targets) / batches.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), recipe.optimizer.gradient_clipping or torch.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first, *_ = (seconds_a_step(step, 1, device) for _ in range(WARMUP))
    return Job(
        lambda: seconds_a_step(step, steps, device),
        config.recipe.batch_tokens,
        n_params=n_params(model),
        first_step=first,
    )
