"""A study of context length, from checkpoints to tables, pictures and `results.json`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gptstar.evaluation.length.config import CUTS, TRUNCATED, LengthConfig
from gptstar.evaluation.length.curve import Context, Curve
from gptstar.evaluation.length.key_tokens import (
    Judge,
    judge_of,
    key_markdown,
    key_table,
    notes,
    tokens_of_judge,
    with_key_losses,
)
from gptstar.evaluation.length.pictures import plot_context_length, plot_positions
from gptstar.evaluation.length.source import Named, Part, lengths_of, parts_of
from gptstar.evaluation.length.verdict_tables import reasons, verdict_markdown, verdict_table
from gptstar.evaluation.length.verdicts import Verdict, verdicts_of
from gptstar.evaluation.length.ways import read_in_each_way, reader_of
from gptstar.evaluation.progress import study_progress
from gptstar.evaluation.results import FILE_NAME, write_study
from gptstar.evaluation.tables import comparison_table, cost_line, length_markdown, length_table

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
        A curve for each checkpoint, and for each way to scale its positions, and for each control.

    Raises:
        ConfigError, DataError, CheckpointError: text, lengths, scaling or judge don't fit; raised before any reading.
    """
    config = replace(config, context_lengths=lengths_of(checkpoints, config))
    parts = parts_of(checkpoints, config, shards)
    named_judge, judge = judge_of(config, parts), None
    curves: list[Curve] = []
    n_tokens = sum(map(_tokens_to_read, parts)) + (tokens_of_judge(parts) if named_judge else 0)
    with study_progress(console, "reading", n_tokens) as progress:
        if named_judge is not None:
            identity, checkpoint = named_judge
            progress.turn_to(f"{identity['name']}, the judge")
            judge = Judge(identity, reader_of(checkpoint, config, device, progress.advance)[1])
        for part in parts:
            is_key = judge.key_tokens(part) if judge else None
            progress.turn_to(part.name)
            for curve, read in read_in_each_way(part, *reader_of(part.checkpoint, config, device, progress.advance)):
                curves.append(curve if is_key is None else with_key_losses(curve, part.fixed_plan, read, is_key))
    found = Found(curves, parts, _verdicts(curves, parts, config), judge)
    written = _write(found, config, output)
    _print(found, console)
    console.print(f"in {output}: {', '.join(written)}", soft_wrap=True, highlight=False)
    return curves


@dataclass(frozen=True, eq=False)
class Found:
    """The results of a study.

    Attributes:
        judge: the checkpoint that chose key tokens; None without a judge.
    """

    curves: Sequence[Curve]
    parts: Sequence[Part]
    verdicts: Sequence[Verdict]
    judge: Judge | None

    @property
    def full(self) -> list[Curve]:
        """The curves without the controls."""
        return [curve for curve in self.curves if curve.context == "full"]

    @property
    def in_bits(self) -> bool:
        """Whether only bits per byte can be compared, because tokenizers differ."""
        return len({part.tokenizer for part in self.parts}) > 1


def _tokens_to_read(part: Part) -> int:
    windows = (window for length in part.plan.lengths for window in part.plan.windows(length))
    n_cuts = sum(each in CUTS for each in part.controls)
    n_tokens = (len(part.scalings) + n_cuts) * sum(window.size for window in windows)
    if TRUNCATED in part.controls and part.trained_at is not None and part.trained_at < max(part.plan.lengths):
        n_tokens += sum(window.size for window in part.fixed_plan.truncated(part.trained_at))
    return n_tokens


def _verdicts(curves: Sequence[Curve], parts: Sequence[Part], config: LengthConfig) -> list[Verdict]:
    return verdicts_of(_by_context(curves, parts), seed=config.seed) if config.controls else []


def _by_context(curves: Sequence[Curve], parts: Sequence[Part]) -> Iterator[dict[Context, Curve]]:
    """Yield the unscaled curves of each checkpoint, by context; `curves` are in the order of the parts."""
    remaining = iter(curves)
    for part in parts:
        of_part = islice(remaining, len(part.scalings) + len(part.controls))
        yield {curve.context: curve for curve in of_part if curve.scaling == "none"}


def _print(found: Found, console: Console) -> None:
    if len(found.full) == 1:
        console.print(length_table(found.full[0]))
        console.print(cost_line(found.full[0]), soft_wrap=True, highlight=False)
    else:
        console.print(comparison_table(found.full, bits=found.in_bits))
    if found.in_bits:
        console.print(DIFFERENT_TOKENIZERS)
    if found.verdicts:
        console.print(verdict_table(found.verdicts))
        for line in reasons(found.verdicts):
            console.print(line, soft_wrap=True, highlight=False)
    if found.judge is not None:
        console.print(key_table(found.curves))
        for line in notes(found.judge):
            console.print(line, soft_wrap=True, highlight=False)


def _write(found: Found, config: LengthConfig, output: Path) -> list[str]:
    """Write pictures, `results.md` and, last and atomically, `results.json`; return their names."""
    output.mkdir(parents=True, exist_ok=True)
    plan, bits = found.parts[0].plan, found.in_bits
    title = f"{config.protocol.replace('_', ' ')}: {plan.text.name}"
    plot_context_length(found.full, output / "context_length.png", title, bits=bits)
    written = ["context_length.png"]
    if any(curve.positions for curve in found.full):
        plot_positions(found.full, output / "position.png", f"windows of {max(plan.lengths):,}: {plan.text.name}")
        written.append("position.png")
    head = [f"Text: {plan.text.name}. Protocol: {config.protocol}. Products in {config.dtype}."]
    if bits:
        head += ["", DIFFERENT_TOKENIZERS]
    more: dict[str, Any] = {}
    if found.verdicts:
        head += ["", *verdict_markdown(found.verdicts)]
        more["verdicts"] = [asdict(each) for each in found.verdicts]
    if found.judge is not None:
        head += ["", *key_markdown(found.judge, found.curves)]
        more["key_tokens"] = found.judge.described()
    (output / "results.md").write_text(length_markdown(found.curves, head), encoding="utf-8")
    curves = [asdict(curve) for curve in found.curves]
    write_study(output, "length", config, text=plan.text.source, curves=curves, **more)
    return [*written, "results.md", FILE_NAME]
