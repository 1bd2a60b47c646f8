"""Benchmark options of our training step on a GPU against the present step, to decide which to keep.

    python benchmarks/gpu_options.py                            gpt127, 64 × 512 tokens, in 8 minutes
    python benchmarks/gpu_options.py --model gpt303             32 × 512 tokens
    python benchmarks/gpu_options.py --only joined,flex         options whose names have one of these words
    python benchmarks/gpu_options.py --device cpu               a tiny model, to see that the script works

Each option runs in a separate process, and all take turns. The verdict is `keep` if the whole interval of the ratio is
above 1 and the ratio is at least 1.005.
"""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.progress import Progress

from gptstar.errors import ConfigError, Refusal
from gptstar.model import GPTConfig
from speed.comparison import Comparison, Entry
from speed.compile_cache import empty_compile_cache
from speed.engine import Measured, Outcome, measure, n_actions
from speed.figures import mfu, paired, share, speeds
from speed.machine import data_sheet_peak, describe
from speed.report import Table, console
from speed.scale import Scale
from speed.worker import WorkerError

BASE, CONTROL = "as it is", "as it is, again"
"""The names of the present step and of its repetition; the deviation of their ratio from 1 shows the noise."""

LEAST_GAIN = 1.005

EVERYWHERE: dict[str, Mapping[str, Any]] = {
    "joined inputs": {"joined": "inputs"},
    "joined inputs and outputs": {"joined": "both"},
    "logits in pieces of 2^28": {"logits_at_once": 2**28},
    "logits in pieces of 2^26": {"logits_at_once": 2**26},
}
"""The arguments of `options.training` by the name of the option."""

ON_A_GPU: dict[str, Mapping[str, Any]] = {
    "flex 128 × 64, 4 warps": {
        "flex_options": {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
    },
    "flex 128 × 128, 8 warps": {
        "flex_options": {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 128, "fwd_num_warps": 8, "fwd_num_stages": 2}
    },
    "flex 64 × 64, 4 warps": {
        "flex_options": {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
    },
    "flex backward 64 × 64, 4 warps": {
        "flex_options": {
            **{f"bwd_BLOCK_{name}": 64 for name in ("M1", "N1", "M2", "N2")},
            "bwd_num_warps": 4,
            "bwd_num_stages": 2,
        }
    },
    "flex, rows safe and blocks contiguous": {
        "flex_options": {"ROWS_GUARANTEED_SAFE": True, "BLOCKS_ARE_CONTIGUOUS": True}
    },
    "flex, FLASH backend": {"flex_options": {"BACKEND": "FLASH"}},
    "max-autotune-no-cudagraphs": {"compile_mode": "max-autotune-no-cudagraphs"},  # last: it takes minutes
}


def sizes(model: str, device: str) -> tuple[GPTConfig, int, int]:
    """Return a model's configuration, with the sequences of a training step and the tokens per sequence."""
    if device == "cpu":
        return GPTConfig(n_layers=2, d_model=64, n_heads=4, n_vocab=500), 2, 32
    scale = Scale.of(device)
    models = {"gpt127": (scale.gpt127, scale.batch), "gpt303": (scale.gpt303, scale.gpt303_batch)}
    return *models[model], scale.context


def comparison(model: str, device: str, only: str | None = None) -> Comparison:
    """Return the comparison of the present step with each option.

    Raises:
        ConfigError: no option's name contains the word.
    """
    config, batch, context = sizes(model, device)
    larger = {f"{size} sequences": {"batch": size} for size in ([2 * batch] if device == "cpu" else [128])}
    options = EVERYWHERE | larger | (ON_A_GPU if device == "cuda" else {})
    words = only.split(",") if only else [""]
    for word in words:
        if not any(word in name for name in options):
            raise ConfigError(f"--only {word}: no option has that in its name: choose from {'; '.join(options)}")
    fast = device == "cuda"
    arguments = {"config": config, "batch": batch, "context": context, "device": device}
    arguments["precision"] = "bf16" if fast else "float32"
    chosen = {name: more for name, more in options.items() if any(word in name for word in words)}
    plain: dict[str, Mapping[str, Any]] = {BASE: {}, CONTROL: {}}
    return Comparison(
        "options",
        f"Training steps of {model if fast else 'a tiny model'}, {batch} × {context} tokens, {arguments['precision']}.",
        tuple(Entry(name, "options.training", {**arguments, **more}) for name, more in (plain | chosen).items()),
        baseline=BASE,
        limit="gemm_bf16" if fast else "gemm_float32",
        rounds=9,
    )


def verdict(measured: Measured, base: Measured) -> tuple[str, str, str]:
    """Return an option's ratio to the present step with its interval, the spread of rounds, and `keep` or `leave`."""
    ratio = paired(measured, base)
    if ratio is None:
        return "", "", "leave"
    spread = (max(measured.seconds) - min(measured.seconds)) / min(measured.seconds)
    keeps = ratio.low > 1 and ratio.value >= LEAST_GAIN
    text = f"{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"
    return text, f"{spread:.1%}", "keep" if keeps else "leave"


def table(compared: Comparison, outcome: Outcome) -> Table:
    """Return a table with a row for each option; a failed one shows the reason in place of its ratio."""
    base, rows = outcome.entries[BASE], list[tuple[str, ...]]()
    for name, measured in outcome.entries.items():
        if not measured.seconds:
            rows.append((name, measured.failure or "not measured", "", "", "", "", "", "leave"))
            continue
        shares = (share(outcome, compared, measured), mfu(outcome, measured))
        ratio, spread, decision = verdict(measured, base)
        figures = (
            f"{sorted(speeds(measured))[len(measured.seconds) // 2]:,.0f}",
            *("" if each is None else f"{each.value:.1%}" for each in shares),
            f"{measured.peak / 1e9:.1f}",
        )
        decision = "" if name in (BASE, CONTROL) else decision
        rows.append((name, ratio, spread, *figures, f"{measured.about.get('first_step', math.nan):.0f}", decision))
    columns = ("option", "ratio (interval)", "spread", "tokens/s", "of the limit", "MFU", "peak, GB", "first step, s")
    return Table((*columns, "verdict"), rows)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options.add_argument("--model", choices=("gpt127", "gpt303"), default="gpt127")
    options.add_argument("--only", metavar="WORDS", help="options whose names have one of these, with commas between")
    options.add_argument("--rounds", type=int, help="(default: 9)")
    options.add_argument("--seconds", type=float, default=420.0, help="after which nothing is built (default: 420)")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the options, and print the table."""
    given, page = parser().parse_args(arguments), console()
    deadline = time.monotonic() + given.seconds
    try:
        if given.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda, but PyTorch sees no GPU here: give --device cpu, or install a CUDA build")
        compared = comparison(given.model, given.device, given.only)
        rounds = given.rounds or compared.rounds
        with contextlib.ExitStack() as stack:
            if given.device == "cuda":
                stack.enter_context(empty_compile_cache())
            progress = stack.enter_context(Progress(console=page))
            task = progress.add_task("", total=n_actions(compared, rounds))
            outcome = measure(
                compared,
                rounds=rounds,
                device=given.device,
                machine=describe(given.device),
                data_sheet=data_sheet_peak(given.device),
                advance=lambda entry: progress.update(task, advance=1, description=entry),
                deadline=deadline,
            )
    except (Refusal, WorkerError) as error:
        sys.exit(f"error: {error}")
    page.print(compared.text, highlight=False)
    page.print(table(compared, outcome).markdown(), highlight=False, soft_wrap=True)
    page.print("; ".join(outcome.machine.values()), style="dim", highlight=False)


if __name__ == "__main__":
    main()
