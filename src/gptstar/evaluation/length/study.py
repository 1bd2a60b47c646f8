"""A study of context length, from checkpoints to tables, pictures and `results.json`."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.length.config import LengthConfig, Scaling
from gptstar.evaluation.length.curve import Curve, Read, read_curve, read_legacy_curve
from gptstar.evaluation.length.legacy import legacy_windows
from gptstar.evaluation.length.reading import CPU_BATCH_TOKENS, Reader, losses_of
from gptstar.evaluation.length.source import Named, Part, parts_of
from gptstar.evaluation.plots import plot_context_length, plot_positions
from gptstar.evaluation.results import FILE_NAME, FORMAT, FORMAT_VERSION, to_json, versions_of
from gptstar.evaluation.tables import comparison_table, cost_line, length_markdown, length_table
from gptstar.files import write_text
from gptstar.model import GPT
from gptstar.model.attention import scaled_rotary
from gptstar.model.positions import Scaling as PositionScaling


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

    Writes `context_length.png`, and where targets stand anywhere in their windows `position.png`.

    Args:
        checkpoints: each with its identity; all in one picture. Of the same text each reads its own tokenizer's tokens.
        shards: a folder of text; what a checkpoint was trained with, unless this or `config.text` is given.

    Returns:
        A curve for each checkpoint, and for each way to scale its rotary positions.

    Raises:
        ConfigError, DataError, CheckpointError: text, lengths or scaling that don't fit, before anything is read.
    """
    parts = parts_of(checkpoints, config, shards)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
    curves: list[Curve] = []
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading", total=sum(_work(part) for part in parts))
        for part in parts:
            progress.update(task, description=f"reading {part.name}")
            curves += _curves(part, config, device, lambda tokens: progress.advance(task, tokens))
    bits = len({part.tokenizer for part in parts}) > 1
    written = _write(curves, parts, config, output, bits)
    if len(curves) == 1:
        console.print(length_table(curves[0]))
        console.print(cost_line(curves[0]), soft_wrap=True, highlight=False)
    else:
        console.print(comparison_table(curves, bits=bits))
    if bits:
        console.print("the tokenizers differ: compare bits per byte, not loss or perplexity")
    console.print(f"in {output}: {', '.join(written)}", soft_wrap=True, highlight=False)
    return curves


def _work(part: Part) -> int:
    """Tokens that go through the model."""
    text, plan = part.material.text, part.material.plan
    if plan is not None:
        return sum(plan.read_at(length) for length in plan.lengths) * len(part.scalings)
    n_tokens = len(text.documents[0])
    return sum(len(legacy_windows(n_tokens, each)) * (each - 1) for each in part.lengths) * len(part.scalings)


def _curves(part: Part, config: LengthConfig, device: torch.device, advance: Callable[[int], object]) -> list[Curve]:
    """A checkpoint, once for each way to scale its positions."""
    model, trained_at = part.checkpoint.build().to(device), part.trained_at
    reader = Reader(
        losses_of(model, device, getattr(torch, config.dtype)),
        device,
        config.batch_tokens or batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens,
        capacity=part.checkpoint.model.positions.capacity,
        advance=advance,
    )
    text, plan, n_bytes = part.material.text, part.material.plan, part.material.n_bytes
    plain: dict[int, Read] = {}
    curves = []
    for scaling in part.scalings:
        name = part.name if scaling == "none" else f"{part.name}, {'YaRN' if scaling == 'yarn' else 'NTK'}"
        scaled = replace(reader, within=_scaled(model, scaling, trained_at))
        if plan is None:
            metric, lengths = config.legacy_metric, part.lengths
            curve = read_legacy_curve(scaled, text, n_bytes, lengths, metric, name=name, trained_at=trained_at)
        else:
            within_training = {length: found for length, found in plain.items() if length <= (trained_at or 0)}
            known = plain if scaling == "none" else within_training  # where there is nothing to scale
            curve = read_curve(scaled, plan, name=name, trained_at=trained_at, seed=config.seed, known=known)
        curves.append(replace(curve, rotary_scaling=scaling, checkpoint=dict(part.who)))
    return curves


def _scaled(
    model: GPT, scaling: Scaling, trained_at: int | None
) -> Callable[[int], contextlib.AbstractContextManager[object]]:
    """What a length is read within."""

    def within(length: int) -> contextlib.AbstractContextManager[object]:
        if scaling == "none" or trained_at is None:
            return contextlib.nullcontext()
        return scaled_rotary(model, PositionScaling(scaling, max(1.0, length / trained_at), trained_at))

    return within


def _write(curves: Sequence[Curve], parts: Sequence[Part], config: LengthConfig, output: Path, bits: bool) -> list[str]:
    """Pictures, `results.md`, and last and whole `results.json`; the names of what was written."""
    output.mkdir(parents=True, exist_ok=True)
    text = parts[0].material.text
    title = f"{config.protocol.replace('_', ' ')}: {text.name}"
    plot_context_length(curves, output / "context_length.png", title, bits=bits)
    written = ["context_length.png"]
    if any(curve.positions for curve in curves):
        longest = max(parts[0].lengths)
        plot_positions(curves, output / "position.png", f"windows of {longest:,}: {text.name}")
        written.append("position.png")
    head = [f"Text: {text.name}. Protocol: {config.protocol}. Products in {config.dtype}."]
    if bits:
        head += ["", "The tokenizers differ: compare bits per byte, not loss or perplexity."]
    (output / "results.md").write_text(length_markdown(curves, head), encoding="utf-8")
    protocol = asdict(config) | {"context_lengths": list(parts[0].lengths)}
    tree = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "length",
        "protocol": protocol,
        "text": text.source,
        "versions": versions_of("torch", "numpy", "tokenizers"),
        "curves": [asdict(curve) for curve in curves],
    }
    write_text(output / FILE_NAME, to_json(tree))
    return [*written, "results.md", FILE_NAME]
