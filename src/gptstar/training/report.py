"""What a finished run shows: a bigram to beat, loss beyond the training context, samples, and two pictures."""

import math
from dataclasses import asdict

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.text import Text

from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.read import find, load
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.bigram import bigram_loss
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.curve import Plan, read_curve
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
from gptstar.training.hardware import Hardware
from gptstar.training.loggers import log_texts
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record

PROMPTS = ("The", "If the", "Return a")


def conclude(
    trainer: pl.Trainer, shards: ShardFolder, recipe: Recipe, hardware: Hardware, record: Record, console: Console
) -> None:
    """Draw the loss; with `report` also print what the best checkpoint can do, and write it down.

    Writes `loss.png`; with `report` also `context_length.png`, `samples.txt` and `report.json`; with `reading` a folder
    `length`.

    Args:
        trainer: of the run that has ended.
    """
    folder, name, device = record.output, record.name, trainer.strategy.root_device
    context_length, validation_tokens = recipe.data.context_length, recipe.data.validation_tokens
    extrapolates = recipe.model.positions.extrapolates
    rows = read_metrics(folder)
    bigram = bigram_loss(shards, validation_tokens) if record.report else None
    plot_loss(rows, folder / "loss.png", name, bigram)
    if bigram is not None:
        model = load(folder).to(device)
        text = text_of_shards(shards)
        longest = min(validation_tokens, text.sizes.max()) if extrapolates else context_length
        protocol = LengthConfig(max_tokens=validation_tokens, seed=0)
        lengths = [length for length in protocol.lengths(context_length) if length <= longest]
        plan = Plan(text, protocol, lengths)
        losses = losses_of(
            model, device, torch.float32 if hardware.resolved_precision() == "float32" else torch.bfloat16
        )
        reader = Reader(losses, device, batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens)
        with console.status("reading at each context length"):
            curve = read_curve(reader, plan, name=name, trained_at=context_length)
        best = min((row["validation/loss"] for row in rows if "validation/loss" in row), default=math.nan)
        title = "the same held-out tokens at each context length, ± half of the 95 % interval"
        console.print(length_table(curve, title))
        console.print(f"validation loss {best:.3f}; a bigram model of the same tokens has {bigram:.3f}")
        n_new = 2 * context_length if extrapolates else context_length // 2
        samples = _sample(model, shards.tokenizer, n_new, console)
        title = f"{name}: loss beyond the training context"
        plot_context_length([curve], folder / "context_length.png", title)
        (folder / "samples.txt").write_text(f"\n{'-' * 80}\n".join(samples) + "\n", encoding="utf-8")
        figures = {
            "validation_loss": best,
            "bigram_loss": bigram,
            "lengths": [asdict(result) for result in curve.lengths],
        }
        log_texts(trainer.loggers, {f"sample {number}": sample for number, sample in enumerate(samples, start=1)})
        (folder / "report.json").write_text(to_json(figures), encoding="utf-8")
    if record.reading.reads:
        try:
            study(
                [read_with_identity(find(folder))],
                record.reading,
                shards=None if record.reading.text else str(shards.folder),
                device=device,
                console=console,
                output=folder / "length",
            )
        except DataError as error:
            raise DataError(
                f"{error}; training is complete; rerun with reading.multiples=[] to skip the length study"
            ) from error
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    console.print(f"in {folder}: {', '.join(files)}", highlight=False, soft_wrap=True)
    plugins = "".join(f" --plugins {module}" for module in record.plugins)
    command = f"next: gptstar generate {folder} --prompt The{plugins}"
    console.print(command, highlight=False, soft_wrap=True)


def _sample(model: GPT, tokenizer: Tokenizer, n_new: int, console: Console) -> list[str]:
    samples = []
    for number, prompt in enumerate(PROMPTS, start=1):
        with console.status(f"sampling {number} of {len(PROMPTS)}"):
            (sample,) = generate(model, prompt, n_new, sampling=Sampling(top_k=50, seed=number), tokenizer=tokenizer)
        samples.append(prompt + sample.text)
        console.rule(f"sample {number}, {n_new} new tokens")
        console.print(Text.assemble((prompt, "bold"), sample.text))
    console.rule()
    return samples
