"""Benchmark every implementation of causal attention with ALiBi: its time in evaluation and training, and its error.

    python benchmarks/attention_forms.py                       512 to 8,192 tokens on two CPU cores: 3 minutes
    python benchmarks/attention_forms.py --lengths 512,1024
    python benchmarks/attention_forms.py --device cuda

The implementations run in turn. Their inputs are laid out as by a joint projection of queries, keys and values.
"""

import argparse
import math
import statistics
import time
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gptstar.model.attention import AttentionForm, causal_attention
from gptstar.model.kernels.bias import linear_bias
from gptstar.model.positions import alibi_slopes

N_HEADS, D_HEAD = 8, 192
TOKENS = 1024  # of a batch, unless a window is longer
CHECKED = 64  # the last queries, whose output is compared with the definition


def attend(x: Tensor, form: AttentionForm, slopes: Tensor) -> Tensor:
    """Compute attention: `(batch, position, 3 * head * d_head)` → `(batch, head, position, d_head)`."""
    query, key, value = (part.unflatten(2, (N_HEADS, D_HEAD)).transpose(1, 2) for part in x.chunk(3, dim=-1))
    return causal_attention(query, key, value, slopes, form=form)


def seconds(x: Tensor, form: AttentionForm, slopes: Tensor, *, training: bool) -> float:
    """Return the seconds of a forward pass, and in training also of the backward pass."""
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        mixed = attend(x.requires_grad_(training), form, slopes)
        if training:
            mixed.sum().backward()  # type: ignore[no-untyped-call]
            x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def error(x: Tensor, form: AttentionForm, slopes: Tensor) -> float:
    """Return the largest error of the last queries against the definition in float32."""
    n_positions = x.shape[1]
    first = max(0, n_positions - CHECKED)
    query, key, value = (part.unflatten(2, (N_HEADS, D_HEAD)).transpose(1, 2).float() for part in x.chunk(3, dim=-1))
    bias = linear_bias(slopes, range(first, n_positions), range(n_positions))
    with torch.no_grad():
        scores = query[:, :, first:] @ key.transpose(-2, -1) / math.sqrt(D_HEAD)
        expected = torch.softmax(scores + bias, dim=-1) @ value
        return float((attend(x, form, slopes)[:, :, first:].float() - expected).abs().max())


def main() -> None:
    """Measure all implementations, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lengths", default="512,1024,2048,8192")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = options.parse_args()
    forms = [form for form in get_args(AttentionForm) if form != "auto" and (form == "flex") <= (given.device != "cpu")]
    slopes = torch.tensor(alibi_slopes(N_HEADS), device=given.device)
    columns = [f"{form}, {what}" for what in ("read", "train") for form in forms]
    table = Table("type", "batch × length", *columns, "error")
    console = Console(width=160)
    for dtype in (torch.bfloat16, torch.float32):
        for length in map(int, given.lengths.split(",")):
            torch.manual_seed(0)
            batch = max(1, TOKENS // length)
            x = torch.randn(batch, length, 3 * N_HEADS * D_HEAD, dtype=dtype, device=given.device)
            times: dict[tuple[bool, AttentionForm], list[float]] = {}
            with console.status(f"{dtype}, {length:,} tokens"):
                for number in range(given.rounds + 1):
                    for training in (False, True):
                        for form in forms:
                            elapsed = seconds(x, form, slopes, training=training)
                            if number:  # the first warms up
                                times.setdefault((training, form), []).append(elapsed)
            medians = [f"{statistics.median(each) * 1e3:.1f} ms" for each in times.values()]
            errors = ", ".join(f"{form} {error(x.detach(), form, slopes):.0e}" for form in forms)
            table.add_row(str(dtype).removeprefix("torch."), f"{batch} × {length:,}", *medians, errors)
    console.print(table)


if __name__ == "__main__":
    main()
