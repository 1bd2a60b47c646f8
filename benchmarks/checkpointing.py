"""Measure the cost of saving checkpoints during training.

    python benchmarks/checkpointing.py             # the quickstart's model, and gpt127; minutes on two cores
    python benchmarks/checkpointing.py --model gpt303

Stretches of steps are timed; every other stretch saves a checkpoint after its first step, which is copied, and written
in the background. Prints the time that a checkpoint adds, and its share of the time between two checkpoints.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gptstar.checkpoint.format import Checkpoint, TrainingState
from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.model import GPT
from gptstar.ranks import Ranks
from gptstar.training.memory import keep_freed_memory
from gptstar.training.optimizers import state_by_name
from gptstar.training.saving import BackgroundWriter

SIZES = {
    "quickstart": ("quickstart", 4096, 100, 40),
    "gpt127": ("gpt127", 1024, 500, 8),
    "gpt303": ("gpt303", 1024, 500, 4),
}
"""For each size: the experiment, the tokens per step in this benchmark, the steps between checkpoints, and the steps of
a stretch."""


def main() -> None:
    """Measure all sizes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, help="one of them (default: quickstart and gpt127)")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of stretches (default: %(default)s)")
    options = parser.parse_args()
    keep_freed_memory()
    table = Table(
        "model", "tokens a step", "step, s", "a checkpoint, MB", "training waits, s", "adds in all, s", "every", "share"
    )
    for name in [options.model] if options.model else ["quickstart", "gpt127"]:
        experiment, batch_tokens, interval, steps = SIZES[name]
        words = [f"experiment={experiment}", "data.shards=none", f"batch_tokens={batch_tokens}"]
        config = TrainConfig.parse(compose("train", words))
        table.add_row(name, f"{batch_tokens:,}", *measure(config, interval, steps, options.rounds))
    Console(width=140).print(table)


def measure(config: TrainConfig, interval: int, steps: int, rounds: int) -> list[str]:
    """Return a table row: seconds per step, size, seconds waited, seconds added, the interval, and the share."""
    torch.manual_seed(0)
    model = GPT(config.recipe.model)
    optimizer = config.recipe.optimizer.build(model)
    length = config.recipe.data.context_length
    windows = torch.randint(config.recipe.model.n_vocab, (config.recipe.batch_tokens // length, length + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.hardware.resolved_precision() == "bf16"):
            loss = model(windows[:, :-1], windows[:, 1:], reduction="sum") / windows[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    times: dict[bool, list[float]] = {True: [], False: []}
    waited, number = [], 0
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        writer = BackgroundWriter(Path(folder), keep=2, ranks=Ranks(), sharded=False)
        for saves in track([False, True] * rounds, config.record.name):
            began = time.perf_counter()
            for done in range(steps):
                step()
                if saves and done == 0:
                    number += 1
                    state = TrainingState(number, 0, None, {}, {}, state_by_name(optimizer, model))
                    start_time = time.perf_counter()
                    writer.save(Checkpoint(model.config, model.state_dict(), "{}", state), number, best=False)
                    waited.append(time.perf_counter() - start_time)
            times[saves].append(time.perf_counter() - began)
            writer.wait()
        size = (Path(folder) / "last.ckpt").stat().st_size
    seconds = median(times[False]) / steps
    added = median(with_one - without for with_one, without in zip(times[True], times[False], strict=True))
    share = added / (interval * seconds)
    return [
        f"{seconds:.2f}",
        f"{size / 1e6:,.0f}",
        f"{median(waited):.2f}",
        f"{added:.2f}",
        f"{interval} steps",
        f"{share:.2%}",
    ]


if __name__ == "__main__":
    main()
