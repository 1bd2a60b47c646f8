"""The report of a finished run: its loss; with `report`, also a bigram baseline, loss by context length, samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.read import find, load
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.bigram import bigram_loss
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.curve import Curve, Plan, read_curve
from gptstar.evaluation.length.pictures import plot_context_length
from gptstar.evaluation.length.reading import CPU_BATCH_TOKENS, Reader, losses_of
from gptstar.evaluation.length.study import study
from gptstar.evaluation.length.text import text_of_shards
from gptstar.evaluation.results import to_json
from gptstar.evaluation.tables import length_table
from gptstar.inference.generate import generate
from gptstar.inference.sampling import Sampling
from gptstar.model import GPT
from gptstar.plots.loss import plot_loss
from gptstar.training.budget import BIGRAM_TOKENS, LEAST_STRETCHES, ROOM, Budget
from gptstar.training.final_studies import run_final_studies
from gptstar.training.hardware import Hardware
from gptstar.training.loggers import log_texts
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record

PROMPTS = ("The", "If the", "Return a")

MOST_NEW = 256
"""The most tokens of a sample."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        step: its last step.
        shards: the text that it was trained on.
    """

    step: int
    shards: ShardFolder
    recipe: Recipe
    hardware: Hardware
    record: Record

    @property
    def title(self) -> str:
        """The title of pictures: the run's name, and in a sweep the job's, which is that of its folder."""
        job = self.record.tracker.run_name
        return f"{self.record.name}: {job}" if job and job != self.record.name else self.record.name

    @property
    def trained_tokens(self) -> int:
        """The number of tokens that the run was trained on."""
        return self.step * self.recipe.batch_tokens

    @property
    def budget(self) -> Budget:
        """The compute budget for the report."""
        return Budget(self.recipe.model, self.recipe.data.context_length, self.trained_tokens)

    @property
    def bigram_tokens(self) -> int:
        """The number of tokens for counting the bigram model: at most as many as the run was trained on."""
        return min(self.trained_tokens, BIGRAM_TOKENS)


def conclude(trainer: pl.Trainer, ended: Ended, console: Console) -> str:
    """Plot the loss; with `report`, also evaluate the best checkpoint, and print and write the results.

    Writes `loss.png`; with `report` also `context_length.png`, `samples.txt` and `report.json`; with `reading` a folder
    `length`; with `final_studies` a folder for each. The cost of `report` is limited by `budget`.

    Returns:
        The line that ends the run: its final validation loss.
    """
    folder, report = ended.record.output, ended.record.report
    say = partial(console.print, highlight=False, soft_wrap=True)
    rows = read_metrics(folder)
    bigram = _bigram(ended, say) if report else None
    plot_loss(rows, folder / "loss.png", ended.title, bigram)
    if bigram is not None:
        _report(trainer, ended, rows, bigram, console)
    if ended.record.reading.reads:
        _study(ended, trainer.strategy.root_device, console)
    if ended.record.final_studies:
        trained_at = ended.recipe.data.context_length
        run_final_studies(ended.record, trained_at, ended.shards, trainer.strategy.root_device, console)
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    say(f"in {folder}: {', '.join(files)}")
    plugins = "".join(f" --plugins {module}" for module in ended.record.plugins)
    say(f"next: gptstar generate {folder} --prompt The{plugins}")
    return final_line(rows, bigram, ended)


def final_line(rows: Sequence[dict[str, float]], bigram: float | None, ended: Ended) -> str:
    """Return a line with the last validation loss, the best one if it differs, and the loss of the bigram model."""
    losses = [(int(row["step"]), row["validation/loss"]) for row in rows if "validation/loss" in row]
    if not losses:
        return f"no validation was due; in {ended.record.output}"
    step, loss = losses[-1]
    at_best, best = min(losses, key=lambda each: (each[1], -each[0]))
    averages = [row["averaged/loss"] for row in rows if int(row["step"]) == step and "averaged/loss" in row]
    averaged = f", of averaged weights {averages[-1]:.3f}" if averages else ""
    lower = f" (best: {best:.3f} at step {at_best:,})" if at_best != step else ""
    beside = "" if bigram is None else f"; a bigram model {_counted(ended)} has {bigram:.3f}"
    return f"validation loss {loss:.3f} at step {step:,}{averaged}{lower}{beside}; in {ended.record.output}"


def _bigram(ended: Ended, say: Callable[[str], None]) -> float:
    say(f"after the last step: a bigram model {_counted(ended)}, loss at each context length, samples")
    return bigram_loss(ended.shards, ended.recipe.data.validation_tokens, ended.bigram_tokens)


def _counted(ended: Ended) -> str:
    """Say on which tokens the bigram model is counted."""
    available = sum(len(ended.shards.stream("train", name)) for name in ended.shards.corpora("train"))
    counted = ended.bigram_tokens
    return "of the same tokens" if counted >= available else f"of {counted:,} of the text's {available:,} tokens"


def _report(
    trainer: pl.Trainer, ended: Ended, rows: Sequence[dict[str, float]], bigram: float, console: Console
) -> None:
    """Read with the best checkpoint at each context length, sample, and write `report.json`."""
    folder = ended.record.output
    model = load(folder).to(trainer.strategy.root_device)
    best = min((row["validation/loss"] for row in rows if "validation/loss" in row), default=math.nan)
    figures = {"validation_loss": best, "bigram_loss": bigram, "lengths": []} | _read(model, ended, console)
    samples = _sample(model, ended, console)
    (folder / "samples.txt").write_text(f"\n{'-' * 80}\n".join(samples) + "\n", encoding="utf-8")
    log_texts(trainer.loggers, {f"sample {number}": sample for number, sample in enumerate(samples, start=1)})
    (folder / "report.json").write_text(to_json(figures), encoding="utf-8")


def _read(model: GPT, ended: Ended, console: Console) -> dict[str, object]:
    """Read the same targets at each context length, print the table, draw it, and return it for `report.json`."""
    folder, trained_at = ended.record.output, ended.recipe.data.context_length
    text, extrapolates = text_of_shards(ended.shards), ended.recipe.model.positions.extrapolates
    available = int(text.sizes.max(initial=0)) - 1  # a target has a whole context before it
    longest = available if extrapolates else min(available, trained_at)
    lengths = [length for length in LengthConfig().lengths(trained_at) if length <= longest]
    n_targets = ended.budget.fixed_targets(lengths) if lengths else 0
    say = partial(console.print, highlight=False, soft_wrap=True)
    if not n_targets:
        why = f"no held-out text is longer than the training context, {trained_at:,} tokens"
        if lengths:
            why = "a tenth of the training's operations reads too few tokens for an interval"
        say(f"context lengths are not read: {why}; for more: gptstar evaluate evaluation=length checkpoint={folder}")
        return {}
    config = LengthConfig(
        protocol="fixed_targets",
        targets=Budget.block(lengths),
        room=max(ROOM if available >= LEAST_STRETCHES * ROOM else 0, *lengths),
        max_tokens=n_targets,
        context_lengths=tuple(lengths),
        dtype="float32" if ended.hardware.resolved_precision() == "float32" else "bfloat16",
        seed=0,
    )
    plan = Plan(text, config, lengths, reference=trained_at)
    device = model.token_embedding.weight.device
    n_tokens = sum(window.size for length in plan.lengths for window in plan.windows(length))
    say(f"reading {plan.n_targets:,} held-out targets at each context length: {n_tokens:,} tokens")
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading", total=n_tokens)
        reader = Reader(
            losses_of(model, device, getattr(torch, config.dtype)),
            device,
            batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens,
            advance=lambda tokens: progress.advance(task, tokens),
        )
        curve = read_curve(reader, plan, name=ended.record.name, trained_at=trained_at)
    _show(curve, ended, console)
    return {
        "lengths": [asdict(result) for result in curve.lengths],
        "curve": asdict(curve),
        "protocol": asdict(config),
        "text": text.source,
    }


def _show(curve: Curve, ended: Ended, console: Console) -> None:
    console.print(length_table(curve, "the same held-out targets at each context length, ± half of the 95 % interval"))
    title = f"{ended.title}\nloss beyond the training context"
    plot_context_length([curve], ended.record.output / "context_length.png", title)


def _sample(model: GPT, ended: Ended, console: Console) -> list[str]:
    tokenizer: Tokenizer = ended.shards.tokenizer
    context_length = ended.recipe.data.context_length
    most = 2 * context_length if ended.recipe.model.positions.extrapolates else context_length // 2
    n_new, samples = min(most, MOST_NEW), []
    for number, prompt in enumerate(PROMPTS, start=1):
        with console.status(f"sampling {number} of {len(PROMPTS)}"):
            (sample,) = generate(model, prompt, n_new, sampling=Sampling(top_k=50, seed=number), tokenizer=tokenizer)
        samples.append(prompt + sample.text)
        if number == 1:
            console.rule(f"sample 1, {n_new} new tokens; {len(PROMPTS) - 1} more in samples.txt")
            console.print(Text.assemble((prompt, "bold"), sample.text))
            console.rule()
    return samples


def _study(ended: Ended, device: torch.device, console: Console) -> None:
    """Read at the context lengths that `reading` names, of as many targets as it says or the run can afford."""
    record, trained_at = ended.record, ended.recipe.data.context_length
    reading = replace(record.reading, max_tokens=ended.budget.study_targets(record.reading))
    listed = ", ".join(f"{length:,}" for length in reading.lengths(trained_at))
    many = "all targets" if reading.limit is None else f"up to {reading.limit:,} targets"
    line = f"after the last step: reading {many} at context lengths {listed}"
    console.print(line, highlight=False, soft_wrap=True)
    try:
        study(
            [read_with_identity(find(record.output))],
            reading,
            shards=None if reading.text else str(ended.shards.folder),
            device=device,
            console=console,
            output=record.output / "length",
        )
    except DataError as error:
        raise DataError(
            f"{error}; training is complete; rerun with reading.multiples=[] to skip the length study"
        ) from error
