"""`gptstar runs` and `gptstar report`: what has been run, and what came out of it."""

import argparse
from pathlib import Path


def add_results_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add them to the `gptstar` command."""
    command = commands.add_parser(
        "runs",
        help="list runs: how far, how good, how fast",
        description="A line for each run in the folders, at any depth.",
    )
    command.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER", help="(default: runs)"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead")
    command.set_defaults(run=_runs)

    command = commands.add_parser(
        "report",
        help="write what a set of runs found: what was varied, losses, effects, pictures",
        description="Write report.html, which holds all it needs, and report.md, about any set of runs.",
    )
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, a sweep, or a folder of such")
    command.add_argument("--output", type=Path, metavar="DIR", help="(default: report, in the first folder)")
    command.add_argument("--title", metavar="TEXT", help="(default: the folders' names)")
    command.add_argument(
        "--against",
        metavar="LEVEL",
        help="compare arms with this one, such as an experiment's name (default: the first of each factor)",
    )
    command.set_defaults(run=_report)


def _runs(options: argparse.Namespace) -> None:
    from rich.console import Console

    from gptstar.results.run import find_runs
    from gptstar.results.table import as_records, runs_table

    found = find_runs(options.folders)
    if options.json:
        from gptstar.evaluation.results import to_json

        print(to_json({"runs": as_records(found)}), end="")
        return
    console = Console()
    console.print(runs_table(found))
    for run in found:
        if run.state == "failed":
            console.print(f"{run.path}: {run.reason}", style="red", soft_wrap=True, highlight=False, markup=False)


def _report(options: argparse.Namespace) -> None:
    from rich.console import Console

    from gptstar.results.report import write_report

    output = options.output or options.folders[0] / "report"
    with Console().status("reading the runs"):
        written = write_report(options.folders, output, options.title, options.against)
    print("\n".join(map(str, written)))
