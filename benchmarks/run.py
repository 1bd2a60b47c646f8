"""Benchmark speed against peers on this machine: all comparisons of docs/speed.md, for benchmarks/RESULTS.md.

    python benchmarks/run.py                            everything, 25 minutes on two CPU cores
    python benchmarks/run.py --quick                    the figures of `make bench-check`, in 4 minutes; to runs/bench
    python benchmarks/run.py --only training,decoding   some; the others' results are kept
    python benchmarks/run.py --device cuda              on the GPU; after 5 minutes the remaining ones are skipped
    python benchmarks/run.py --device cuda --only training-peers,shapes,training-batch,prefill

Each peer runs in a separate process, and all take turns, because only ratios within a round are meaningful on a machine
whose speed drifts. Nothing else should be running. benchmarks/evaluation.py measures evaluation.
"""

import argparse
import contextlib
import math
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
from speed.compile_cache import empty_compile_cache
from speed.engine import SKIPPED, Outcome, close, measure, n_actions, start
from speed.machine import data_sheet_peak, describe
from speed.scale import Scale
from speed.worker import ROOT, Worker, WorkerError

SECONDS = {"cpu": math.inf, "cuda": 280.0}
"""The default of `--seconds`, by device."""

LEAST_SECONDS = 20.0
"""The least remaining seconds to begin a comparison; with fewer, its processes would hardly start."""

ELSEWHERE = {"evaluation": "python benchmarks/evaluation.py --help"}
"""Comparisons with a separate script."""

PUBLISHED, TRIAL = ROOT / "benchmarks", ROOT / "runs" / "bench"


def choose(all_of_them: Sequence[Comparison], only: str | None) -> list[Comparison]:
    """Return the comparisons with the given names; `training` also selects `training-float32`.

    Raises:
        ConfigError: a name is unknown.
    """
    if only is None:
        return list(all_of_them)
    for name in only.split(","):
        if name in ELSEWHERE:
            raise ConfigError(f"--only {name} has a separate script: {ELSEWHERE[name]}")
        if not any(named(each, name) for each in all_of_them):
            known = ", ".join(each.name for each in all_of_them)
            raise ConfigError(f"--only {name}: there is no such comparison: choose from {known}")
    return [each for each in all_of_them if any(named(each, name) for name in only.split(","))]


def named(comparison: Comparison, name: str) -> bool:
    """Whether a name is that of a comparison or of its group."""
    return comparison.name == name or comparison.name.startswith(f"{name}-")


def run(
    chosen: Sequence[tuple[Comparison, int]], *, device: str, folder: Path, console: Console, seconds: float = math.inf
) -> store.Results:
    """Run comparisons, each for its number of rounds, and write the results after each.

    On a GPU the next comparison's processes start while the present one builds, because their imports take ten seconds.

    Args:
        seconds: the time limit. The remaining comparisons are skipped, and named in the terminal.

    Returns:
        The outcomes of this run.
    """
    begun = time.monotonic()
    store.load(folder / store.FILE)  # fail now if it is damaged
    machine, data_sheet = describe(device), data_sheet_peak(device)
    now: store.Results = {device: {}}
    skipped: list[str] = []
    waiting: dict[str, dict[str, Worker]] = {}  # processes by comparison, started ahead
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(empty_compile_cache())
        progress = stack.enter_context(Progress(*columns, console=console))
        stack.callback(lambda: close(worker for workers in waiting.values() for worker in workers.values()))
        task = progress.add_task("", total=sum(n_actions(each, rounds) for each, rounds in chosen))
        for number, (comparison, rounds) in enumerate(chosen):
            start_time = time.monotonic()
            if begun + seconds - start_time < LEAST_SECONDS:
                skipped.append(comparison.name)
                continue
            progress.update(task, description=comparison.name)

            def advance(entry: str, comparison: Comparison = comparison) -> None:
                progress.update(task, advance=1, description=f"{comparison.name}: {entry}")

            def start_next(number: int = number) -> None:
                if device == "cuda" and number + 1 < len(chosen):
                    following, _ = chosen[number + 1]
                    waiting[following.name] = start(following, device)

            outcome = measure(
                comparison,
                rounds=rounds,
                device=device,
                machine=machine,
                data_sheet=data_sheet,
                advance=advance,
                workers=waiting.pop(comparison.name, None),
                ready=start_next,
                deadline=begun + seconds,
            )
            left_out = [name for name, entry in outcome.entries.items() if entry.failure == SKIPPED]
            skipped += [f"{comparison.name} ({name})" for name in left_out]
            took = f"{len(outcome.limit) - 1} rounds in {time.monotonic() - start_time:.0f} s"
            console.print(f"{comparison.name}: {took}", highlight=False)
            if len(left_out) < len(outcome.entries):
                now[device][comparison.name] = outcome
                record(outcome, comparison.name, device, folder)
    if skipped:
        text = f"skipped after {seconds:g} seconds: {'; '.join(skipped)}"
        console.print(text, style="bold", highlight=False, soft_wrap=True)
    return now


def record(outcome: Outcome, name: str, device: str, folder: Path) -> None:
    """Replace a comparison's earlier outcome, and write the tables of all comparisons."""
    known = store.load(folder / store.FILE)
    known.setdefault(device, {})[name] = outcome
    store.save(known, folder / store.FILE)
    report.write(known, folder / "RESULTS.md")


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
        "--seconds",
        type=float,
        help="time limit, after which comparisons are skipped (default: 280 on a GPU, else none)",
    )
    options.add_argument(
        "--output", type=Path, help=f"folder (default: benchmarks; with --quick {TRIAL.relative_to(ROOT)})"
    )
    options.add_argument("--list", action="store_true", help="list the comparisons and their participants")
    return options


def plan(options: argparse.Namespace) -> list[tuple[Comparison, int]]:
    """Return the comparisons to run, with their numbers of rounds.

    Raises:
        ConfigError: an option has an invalid value.
    """
    if options.device == "cuda" and not (options.list or torch.cuda.is_available()):
        raise ConfigError("--device cuda, but PyTorch sees no GPU here: leave it out, or install a CUDA build")
    if options.rounds is not None and options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds} is below 1")
    if options.seconds is not None and not options.seconds >= 0:
        raise ConfigError(f"--seconds {options.seconds:g} is negative")
    chosen = choose(comparisons(options.device, Scale.of(options.device, long=options.long)), options.only)
    rounds = [(each, each.quick if options.quick else each.rounds) for each in chosen]
    if options.only is not None:  # named comparisons are always measured
        rounds = [(each, number or 2) for each, number in rounds]
    return [(each, options.rounds or number) for each, number in rounds if number]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparisons, and write and show the results."""
    options, console = parser().parse_args(arguments), report.console()
    try:
        chosen = plan(options)
        if options.list:
            for comparison, rounds in chosen:
                console.print(f"[bold]{comparison.name}[/], {rounds} rounds: {comparison.text}", highlight=False)
                console.print("    " + "; ".join(each.name for each in comparison.entries), highlight=False)
            for name, command in ELSEWHERE.items():
                console.print(f"[bold]{name}[/]: {command}", highlight=False)
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped by SIGTERM"))  # this also ends the workers
        folder = options.output or (TRIAL if options.quick else PUBLISHED)
        seconds = SECONDS[options.device] if options.seconds is None else options.seconds
        now = run(chosen, device=options.device, folder=folder, console=console, seconds=seconds)
    except (Refusal, WorkerError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the results of finished comparisons are written")
    if not now[options.device]:
        return
    report.show(report.pairs(now, options.device), console)
    console.print(f"written: {folder / 'RESULTS.md'}, {folder / store.FILE}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
