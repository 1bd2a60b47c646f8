"""This project's model, by the paths that its users take."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptstar.evaluation.length.reading import losses_of
from gptstar.inference.decode import decode
from gptstar.inference.int8 import quantised
from gptstar.inference.packed import packed
from gptstar.model import GPT, GPTConfig
from gptstar.model.loss import LOGITS_AT_ONCE
from gptstar.training.optimizers import Optimizer
from gptstar.training.optimizers.adamw import AdamW
from gptstar.training.working_copy import WorkingCopy
from speed.job import Job, timed
from speed.steps import Precision, prompt_of, training_job

WHOLE_LOGITS = 2**40
"""More than any batch has."""

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


Loss = Callable[[Tensor, Tensor], Tensor]
"""From tokens and targets, `(batch, position)` each, to the mean loss."""


def trainee(
    config: GPTConfig,
    optimizer_config: Optimizer,
    precision: Precision,
    device: str,
    *,
    checkpointing: bool = False,
    logits_at_once: int | None = None,
) -> tuple[GPT, Loss, torch.optim.Optimizer]:
    """A model, its loss and its optimizer as a training run has them, bare.

    Args:
        checkpointing: of activations.
        logits_at_once: logits that the loss holds; None for what a run takes: all on a GPU, where they fit.
    """
    if logits_at_once is None:
        logits_at_once = WHOLE_LOGITS if device == "cuda" else LOGITS_AT_ONCE
    model = GPT(config).to(device).train()
    model.use(activation_checkpointing=checkpointing, logits_at_once=logits_at_once)
    optimizer = optimizer_config.build(model)
    computing = model
    if precision == "bf16_weights":
        copy = WorkingCopy(model)
        optimizer.register_step_post_hook(lambda *_: copy.refresh())
        computing = copy.model
    if device == "cuda":
        computing.compile(fullgraph=True, dynamic=False)
    return model, lambda tokens, targets: computing(tokens, targets, reduction="sum") / targets.numel(), optimizer


def training(
    config: GPTConfig,
    *,
    precision: Precision,
    batch: int,
    context: int,
    device: str,
    checkpointing: bool = False,
    logits_at_once: int | None = None,
) -> Job:
    """A training step; `bf16` is autocast over float32 weights, `bf16_weights` a copy of them in bfloat16.

    Args:
        checkpointing, logits_at_once: as `trainee` takes them.
    """
    optimizer_config = AdamW(learning_rate=1e-4)
    model, loss, optimizer = trainee(
        config, optimizer_config, precision, device, checkpointing=checkpointing, logits_at_once=logits_at_once
    )
    return training_job(
        model,
        loss,
        optimizer,
        autocast=precision == "bf16",
        flops=config.training_flops(context),
        n_vocab=config.n_vocab,
        batch=batch,
        context=context,
        device=device,
    )


def in_use(config: GPTConfig, precision: str, device: str) -> GPT:
    """A model to read and decode with: weights of the type that it computes in, in the layout that is read fastest."""
    model = GPT(config).to(device).eval()
    if precision == "int8":
        return quantised(model)
    return packed(model.to(DTYPES[precision]))


def prefill(config: GPTConfig, *, precision: Precision, prompt: int, device: str) -> Job:
    """A prompt read into a cache, and the logits of its last token."""
    model = in_use(config, precision, device)
    prompts = prompt_of(config.n_vocab, 1, prompt, device).tolist()
    return Job(timed(lambda: decode(model, prompts, 1), device), prompt, n_params=config.n_params)


def decoding(
    config: GPTConfig,
    *,
    precision: str,
    prompt: int,
    n_new: int,
    device: str,
    batch: int = 1,
    compiled: bool = False,
) -> Job:
    """The likeliest token at a time, with a cache; the first token, which comes of the prompt, is not timed.

    Args:
        compiled: compile the step, on a GPU.
    """
    model = in_use(config, precision, device)
    prompts = prompt_of(config.n_vocab, batch, prompt, device).tolist()

    def seconds() -> float:
        times: list[float] = []

        def ended(tokens: Sequence[int]) -> bool:  # called for each row after each token, which has arrived by then
            times.append(time.perf_counter())
            return len(tokens) > n_new

        decode(model, prompts, n_new + 2, ended=ended, compiled=compiled)
        return (times[-1] - times[batch - 1]) / n_new

    start = time.perf_counter()
    seconds()
    first = time.perf_counter() - start if compiled else 0.0
    bytes_a_weight = {"float32": 4, "bf16": 2, "int8": 1}[precision]
    weights = (config.n_params - (config.n_ctx or 0) * config.d_model) * bytes_a_weight
    return Job(seconds, batch, weight_bytes=weights, n_params=config.n_params, first_step=first)


def reading(config: GPTConfig, *, precision: Precision, length: int, device: str) -> Job:
    """The losses of one window, as an evaluation over long contexts reads it."""
    losses = losses_of(GPT(config).to(device).eval(), torch.device(device), DTYPES[precision])
    tokens = torch.randint(config.n_vocab, (1, length + 1))
    losses(tokens[:, :65], 0)  # what is set up once
    read: Callable[[], bool] = lambda: bool(torch.isfinite(losses(tokens, 0)).all())  # noqa: E731
    return Job(timed(read, device, warmup=0), length, n_params=config.n_params)
