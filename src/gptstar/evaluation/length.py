"""Loss against context length: the same target tokens read with less and with more before them."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from gptstar.data.shards import ShardFolder
from gptstar.data.windows import Windows
from gptstar.errors import ConfigError, DataError
from gptstar.model import GPT

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class LengthConfig:
    """At which context lengths to read, and how much.

    Attributes:
        context_lengths: each divides the longest; multiples 1, 2, 4 and 8 of the training context unless given.
        max_tokens: at most this many targets.
    """

    context_lengths: tuple[int, ...] | None = None
    max_tokens: int = 2**20

    def __post_init__(self) -> None:
        check_lengths(self.context_lengths or (1,))
        if self.max_tokens < 1:
            raise ConfigError(f"evaluation.max_tokens={self.max_tokens} is below 1")


@dataclass(frozen=True)
class LengthResult:
    """Loss at one context length.

    Attributes:
        loss: nats a token.
        standard_error: of the loss, over stretches of text as long as the longest context.
        tokens: targets scored.
    """

    context_length: int
    loss: float
    standard_error: float
    perplexity: float
    bits_per_byte: float
    tokens: int


def check_lengths(lengths: Sequence[int]) -> None:
    """Refuse lengths that can't be cut from the same stretches of text.

    Raises:
        ConfigError: names the first that does not divide the longest.
    """
    for length in lengths:
        if length < 1 or max(lengths) % length:
            raise ConfigError(f"evaluation.context_lengths: {length} does not divide the longest, {max(lengths)}")


@torch.inference_mode()
def loss_by_length(
    model: GPT,
    folder: ShardFolder,
    lengths: Sequence[int],
    *,
    max_tokens: int,
    device: torch.device,
    bf16: bool,
    console: Console,
) -> list[LengthResult]:
    """Read held-out text in windows of each length.

    Text is cut into stretches as long as the longest context and these into windows, so every length scores the same
    targets (the protocol `disjoint`); within a window a target has from 1 to all of its tokens before it.

    Args:
        model: in eval mode, on `device`.
        lengths: context lengths, each dividing the longest.
        max_tokens: at most this many targets, whole stretches.
        bf16: autocast to bfloat16, as in training.

    Raises:
        DataError: the held-out text is shorter than the longest context.
    """
    longest = max(lengths)
    streams = [folder.stream("validation", corpus) for corpus in folder.corpora("validation")]
    stretches = min(Windows(streams, longest, longest).n_blocks, max(1, max_tokens // longest))
    if not stretches:
        raise DataError(f"no held-out corpus in {folder.folder} has {longest:,} tokens: read shorter contexts")
    token_bytes = torch.from_numpy(folder.tokenizer.token_bytes)
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    results = []
    for length in track(lengths, "reading at each context length", console=console, transient=True):
        windows = Windows(streams, length, longest)
        per_stretch, n_bytes = [], 0
        at_once = max(1, BATCH_TOKENS // longest)
        for start in range(0, stretches, at_once):
            stop = min(start + at_once, stretches)
            batch = windows.__getitems__(range(start * windows.windows_per_block, stop * windows.windows_per_block))
            n_bytes += int(token_bytes[batch[:, 1:]].sum())
            batch = batch.to(device)
            with autocast:
                losses = model(batch[:, :-1], batch[:, 1:])  # (window, position)
            per_stretch.append(losses.double().view(stop - start, longest).mean(dim=1).cpu().numpy())
        results.append(_summarise(length, np.concatenate(per_stretch), stretches * longest, n_bytes))
    return results


def _summarise(length: int, per_stretch: np.ndarray, tokens: int, n_bytes: int) -> LengthResult:
    loss = float(per_stretch.mean())
    spread = float(per_stretch.std(ddof=1) / math.sqrt(len(per_stretch))) if len(per_stretch) > 1 else math.nan
    bits_per_byte = loss * tokens / math.log(2) / max(n_bytes, 1)
    return LengthResult(length, loss, spread, math.exp(loss), bits_per_byte, tokens)
