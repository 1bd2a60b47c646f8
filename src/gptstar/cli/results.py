"""`gptstar compare`, `evaluation bundle`, `runs` and `report`: list runs and compare their results."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar.cli.arguments import Commands, add_command
from gptstar.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import ConsoleRenderable

    from gptstar.results.loaded import Loaded

WATCH_SECONDS = 3
MOST_RESULTS = 6
"""The number of runs that differ in their seed above which `compare` names the report instead."""


def add_results_commands(commands: Commands) -> None:
    """Add the four commands to the `gptstar` command."""
    text = "compare evaluation results with the first of them"
    description = (
        "Compare each result with the first, the reference: tasks item by item, and losses at each context length "
        "document by document. Print the differences with their 95 % intervals and p-values."
    )
    add = add_command(commands, "compare", _compare, text, description).add_argument
    help_text = (
        "a results.json of evaluate.py, its folder, a run directory, or a folder of runs; at least two results in total"
    )
    add("results", nargs="+", metavar="RESULTS", help=help_text)
    add("--all-metrics", action="store_true", help="show all metrics of a task (default: the first)")
    add("--markdown", action="store_true", help="print Markdown tables instead, with all metrics")
    add("--json", action="store_true", help="print JSON instead, with all metrics")

    group = commands.add_parser("evaluation", help="prepare evaluations on machines without network")
    text = "download the items of tasks into a folder, with hashes and licences"
    description = (
        "Write each task's items to FOLDER, for `evaluate.py evaluation.data_dir=FOLDER`. After an interruption, the "
        "same command continues."
    )
    parts = group.add_subparsers(metavar="COMMAND", required=True)
    add = add_command(parts, "bundle", _bundle, text, description).add_argument
    add("folder", type=Path, metavar="FOLDER", help="the folder to write or to continue")
    add("--tasks", metavar="A,B", help="tasks of the harness (default: the five that GPT* was published with)")
    add("--num-fewshot", type=int, metavar="N", help="also write the split that N few-shot examples come from")
    add("--from", type=Path, dest="source", metavar="DIR", help="read the items from files in DIR instead of the Hub")

    description = (
        "Print a line for each run in the folders, at any depth. A run must meet all conditions and have all tags."
    )
    epilog = "example: gptstar runs runs/search --where 'loss < 4' --where 'model.d_model == 128' --sort loss"
    text = "list runs: progress, loss, speed"
    add = add_command(commands, "runs", _runs, text, description, epilog).add_argument
    add("folders", nargs="*", default=["runs"], metavar="FOLDER", help="a folder or a pattern (default: runs)")
    help_text = "sort by a figure (loss, time, tok/s, step …), a setting or run; --sort=-COLUMN: highest first"
    add("--sort", metavar="COLUMN", help=help_text)
    help_text = "show only runs that meet a condition on a figure, a setting or tags, such as 'loss < 4'"
    add("--where", action="append", default=[], metavar="'KEY OP VALUE'", help=help_text)
    add("--tag", action="append", default=[], metavar="NAME", help="show only runs with this tag")
    add("--watch", action="store_true", help="redraw every few seconds, until Ctrl-C")
    add("--json", action="store_true", help="print JSON instead")

    text = "write a report about a set of runs: varied settings, losses, effects, pictures"
    description = "Write report.html, a single self-contained file, and report.md about any set of runs."
    add = add_command(commands, "report", _report, text, description).add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, a sweep, or a folder of runs")
    add("--output", type=Path, metavar="DIR", help="folder of the report (default: `report` in the first folder)")
    add("--title", metavar="TEXT", help="title of the report (default: the folders' names)")
    add(
        "--against",
        metavar="LEVEL",
        help="the reference level, such as an experiment's name (default: the first level of each factor)",
    )


def _compare(options: argparse.Namespace) -> None:
    from gptstar.evaluation.comparison_tables import comparison_markdown, comparison_tree, print_comparisons
    from gptstar.evaluation.results import to_json
    from gptstar.results.comparison import compared, how_to_pair
    from gptstar.results.loaded import Loaded

    loaded = Loaded(options.results)
    comparisons = compared(loaded)
    _warn(loaded)
    if options.json:
        trees = [comparison_tree(each) for each in comparisons]
        print(to_json(trees[0] if len(trees) == 1 else {"comparisons": trees}), end="")
    elif options.markdown:
        print("\n\n".join(map(comparison_markdown, comparisons)))
    else:
        console, pairing = Terminal(), how_to_pair(loaded)
        most = max(len(each.names) for each in comparisons)
        if pairing and most > MOST_RESULTS:
            print(f"{pairing} `--markdown` compares each of the {most} results with the first.")
            return
        for number, each in enumerate(comparisons):
            console.print("\n" * (number > 0), end="")
            print_comparisons(each, console, all_metrics=options.all_metrics)
        if pairing:
            print(pairing)


def _bundle(options: argparse.Namespace) -> None:
    from gptstar.evaluation.tasks.bundle import bundle
    from gptstar.evaluation.tasks.config import SUITE

    tasks = tuple(options.tasks.split(",")) if options.tasks else SUITE
    bundle(tasks, options.folder, source=options.source, console=Terminal(), num_fewshot=options.num_fewshot)


def _runs(options: argparse.Namespace) -> None:
    from gptstar.evaluation.results import to_json
    from gptstar.results.run import Run, find_runs
    from gptstar.results.selection import Condition, select
    from gptstar.results.table import as_records, runs_table

    conditions = [Condition.parse(text) for text in options.where]

    def selected() -> list[Run]:
        return select(find_runs(options.folders), conditions, options.tag, options.sort)

    runs = selected()
    if options.json:
        print(to_json({"runs": as_records(runs)}), end="")
        return
    console = Terminal()
    if options.watch:
        _watch(lambda: runs_table(selected()), console)
        return
    if not runs:
        console.print("no run matches --where and --tag")
        return
    console.print(runs_table(runs))
    for run in runs:
        if run.reason and run.state in ("failed", "killed", "damaged"):
            console.print(f"{run.path}: {run.reason}", style="red", soft_wrap=True, highlight=False)


def _watch(draw: "Callable[[], ConsoleRenderable]", console: Terminal) -> None:
    """Redraw until Ctrl-C, which ends the command without an error."""
    import contextlib
    import time

    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(draw(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(draw(), refresh=True)


def _report(options: argparse.Namespace) -> None:
    from gptstar.results.loaded import Loaded
    from gptstar.results.report import write_report

    loaded, output = Loaded(options.folders), options.output or options.folders[0] / "report"
    with Terminal().status("reading the runs"):
        written = write_report(loaded, output, options.title, options.against)
    _warn(loaded)
    print("\n".join(map(str, written)))


def _warn(loaded: "Loaded") -> None:
    for line in loaded.damaged.values():
        Terminal(stderr=True).print(f"warning: {line}", soft_wrap=True, highlight=False)
