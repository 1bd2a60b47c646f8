"""A study of context length, from checkpoints to tables, pictures and `results.json`."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.length.config import LengthConfig
from gptstar.evaluation.length.curve import Curve, Read, read_curve
from gptstar.evaluation.length.pictures import plot_context_length, plot_positions
from gptstar.evaluation.length.reading import CPU_BATCH_TOKENS, Reader, losses_of
from gptstar.evaluation.length.source import Named, Part, lengths_of, parts_of
from gptstar.evaluation.progress import study_progress
from gptstar.evaluation.results import FILE_NAME, write_study
from gptstar.evaluation.tables import comparison_table, cost_line, length_markdown, length_table
from gptstar.model.attention import scaled_positions
from gptstar.model.positions import Scaling as PositionScaling

IN_NAMES = {"none": "", "ntk": ", NTK", "yarn": ", YaRN"}
"""How a curve's name ends, by the scaling of its positions; another method's with its own name."""

DIFFERENT_TOKENIZERS = "The tokenizers differ: compare bits per byte, not loss or perplexity."


def study(
    checkpoints: Sequence[Named],
    config: LengthConfig,
    *,
    shards: str | None,
    device: torch.device,
    console: Console,
    output: Path,
) -> list[Curve]:
    """Read text at each context length, print tables, and write pictures, `results.md` and `results.json`.

    Writes `context_length.png`, and if targets stand anywhere in their windows `position.png`.

    Args:
        checkpoints: each with its identity; all in one picture. Each reads the same text with its own tokenizer.
        shards: a folder of text; by default `config.text`, or what a checkpoint was trained with.

    Returns:
        A curve for each checkpoint, and for each way to scale its positions.

    Raises:
        ConfigError, DataError, CheckpointError: text, lengths or scaling that don't fit, before anything is read.
    """
    config = replace(config, context_lengths=lengths_of(checkpoints, config))
    parts = parts_of(checkpoints, config, shards)
    curves: list[Curve] = []
    with study_progress(console, "reading", sum(map(_tokens_to_read, parts))) as progress:
        for part in parts:
            progress.turn_to(part.name)
            curves += _curves(part, config, device, progress.advance)
    bits = len({part.tokenizer for part in parts}) > 1
    written = _write(curves, parts, config, output, bits)
    if len(curves) == 1:
        console.print(length_table(curves[0]))
        console.print(cost_line(curves[0]), soft_wrap=True, highlight=False)
    else:
        console.print(comparison_table(curves, bits=bits))
    if bits:
        console.print(DIFFERENT_TOKENIZERS)
    console.print(f"in {output}: {', '.join(written)}", soft_wrap=True, highlight=False)
    return curves


def _tokens_to_read(part: Part) -> int:
    windows = (window for length in part.plan.lengths for window in part.plan.windows(length))
    return len(part.scalings) * sum(window.size for window in windows)


def _curves(part: Part, config: LengthConfig, device: torch.device, advance: Callable[[int], object]) -> list[Curve]:
    """Read with a checkpoint, once for each way to scale its positions."""
    model, trained_at = part.checkpoint.build().to(device), part.trained_at
    reader = Reader(
        losses_of(model, device, getattr(torch, config.dtype)),
        device,
        config.batch_tokens or batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens,
        capacity=part.checkpoint.model.positions.capacity,
        advance=advance,
    )
    plain: dict[int, Read] = {}
    curves = []
    for scaling in part.scalings:

        def within(length: int, scaling: str = scaling) -> contextlib.AbstractContextManager[object]:
            if scaling == "none" or trained_at is None:
                return contextlib.nullcontext()
            return scaled_positions(model, PositionScaling(scaling, max(1.0, length / trained_at), trained_at))

        within_training = {length: read for length, read in plain.items() if length <= (trained_at or 0)}
        curve = read_curve(
            replace(reader, within=within),
            part.plan,
            name=part.name + IN_NAMES.get(scaling, f", {scaling}"),
            trained_at=trained_at,
            known=plain if scaling == "none" else within_training,  # up to there, there is nothing to scale
        )
        curves.append(replace(curve, scaling=scaling, checkpoint=dict(part.identity)))
    return curves


def _write(curves: Sequence[Curve], parts: Sequence[Part], config: LengthConfig, output: Path, bits: bool) -> list[str]:
    """Write pictures, `results.md`, and last and whole `results.json`; return their names."""
    output.mkdir(parents=True, exist_ok=True)
    plan = parts[0].plan
    title = f"{config.protocol.replace('_', ' ')}: {plan.text.name}"
    plot_context_length(curves, output / "context_length.png", title, bits=bits)
    written = ["context_length.png"]
    if any(curve.positions for curve in curves):
        plot_positions(curves, output / "position.png", f"windows of {max(plan.lengths):,}: {plan.text.name}")
        written.append("position.png")
    head = [f"Text: {plan.text.name}. Protocol: {config.protocol}. Products in {config.dtype}."]
    if bits:
        head += ["", DIFFERENT_TOKENIZERS]
    (output / "results.md").write_text(length_markdown(curves, head), encoding="utf-8")
    write_study(output, "length", config, text=plan.text.source, curves=[asdict(curve) for curve in curves])
    return [*written, "results.md", FILE_NAME]
