"""Speed beside peers, on this machine: every comparison of docs/speed.md, and benchmarks/RESULTS.md.

    python benchmarks/run.py                            all of it, 25 minutes on two CPU cores
    python benchmarks/run.py --quick                    what `make bench-check` looks at, in 4 minutes; to runs/bench
    python benchmarks/run.py --only training,decoding   some; the others' results are kept
    python benchmarks/run.py --device cuda              on the GPU

Each peer has a process of its own and all are asked in turn; only ratios of such rounds mean anything on a machine
whose speed drifts. Nothing else should be running.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gptstar.errors import ConfigError, Refusal
from speed import report, store
from speed.comparison import Comparison
from speed.comparisons import comparisons
from speed.engine import measure, n_actions
from speed.machine import data_sheet_peak, describe
from speed.scale import Scale
from speed.worker import ROOT, WorkerError

PUBLISHED, TRIAL = ROOT / "benchmarks", ROOT / "runs" / "bench"


def choose(all_of_them: Sequence[Comparison], only: str | None) -> list[Comparison]:
    """Those that are named: `training` also names `training-float32`.

    Raises:
        ConfigError: a name that none has.
    """
    if only is None:
        return list(all_of_them)
    for name in only.split(","):
        if not any(named(each, name) for each in all_of_them):
            known = ", ".join(each.name for each in all_of_them)
            raise ConfigError(f"--only {name}: there is no such comparison; they are {known}")
    return [each for each in all_of_them if any(named(each, name) for name in only.split(","))]


def named(comparison: Comparison, name: str) -> bool:
    """Whether a name is a comparison's own or that of its group."""
    return comparison.name == name or comparison.name.startswith(f"{name}-")


def run(chosen: Sequence[tuple[Comparison, int]], *, device: str, folder: Path, console: Console) -> store.Results:
    """Measure comparisons, each for so many rounds, and write what is known after each.

    Returns:
        What was measured now.
    """
    store.load(folder / store.FILE)  # if it is damaged, say so now
    machine, data_sheet = describe(device), data_sheet_peak(device)
    now: store.Results = {device: {}}
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=sum(n_actions(each, rounds) for each, rounds in chosen))
        for comparison, rounds in chosen:
            progress.update(task, description=comparison.name)
            start = time.monotonic()

            def advance(entry: str, comparison: Comparison = comparison) -> None:
                progress.update(task, advance=1, description=f"{comparison.name}: {entry}")

            outcome = measure(
                comparison, rounds=rounds, device=device, machine=machine, data_sheet=data_sheet, advance=advance
            )
            console.print(f"{comparison.name}: {rounds} rounds in {time.monotonic() - start:.0f} s", highlight=False)
            now[device][comparison.name] = outcome
            known = store.load(folder / store.FILE)
            known.setdefault(device, {})[comparison.name] = outcome
            store.save(known, folder / store.FILE)
            report.write(known, folder / "RESULTS.md")
    return now


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", metavar="NAMES", help="comparisons, or groups of them, with commas between")
    options.add_argument("--rounds", type=int, help="of each comparison (default: each has its own)")
    options.add_argument("--quick", action="store_true", help="fewer comparisons and rounds, not for publication")
    options.add_argument(
        "--long", action="store_true", help="windows of 16,384 and 32,768 tokens too: half an hour more"
    )
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument(
        "--output", type=Path, help=f"folder (default: benchmarks; with --quick {TRIAL.relative_to(ROOT)})"
    )
    options.add_argument("--list", action="store_true", help="the comparisons, and who takes part")
    return options


def plan(options: argparse.Namespace) -> list[tuple[Comparison, int]]:
    """Which comparisons to run, and for how many rounds.

    Raises:
        ConfigError: an option that can't be.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but PyTorch sees no GPU here: leave it out, or install a CUDA build")
    if options.rounds is not None and options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds} is below 1")
    chosen = choose(comparisons(options.device, Scale.of(options.device, long=options.long)), options.only)
    rounds = [(each, each.quick if options.quick else each.rounds) for each in chosen]
    if options.only is not None:  # what is named is measured
        rounds = [(each, number or 2) for each, number in rounds]
    return [(each, options.rounds or number) for each, number in rounds if number]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and show."""
    options, console = parser().parse_args(arguments), Console()
    try:
        chosen = plan(options)
        if options.list:
            for comparison, rounds in chosen:
                console.print(f"[bold]{comparison.name}[/], {rounds} rounds: {comparison.text}", highlight=False)
                console.print("    " + "; ".join(each.name for each in comparison.entries), highlight=False)
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to stop"))  # so that workers are ended too
        folder = options.output or (TRIAL if options.quick else PUBLISHED)
        now = run(chosen, device=options.device, folder=folder, console=console)
    except (Refusal, WorkerError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; comparisons that had ended are written")
    report.show(report.pairs(now, options.device), console)
    console.print(f"written: {folder / 'RESULTS.md'}, {folder / store.FILE}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
