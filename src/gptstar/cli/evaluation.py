"""`gptstar compare`, `gptstar evaluation …` and `gptstar export`: what stands around evaluate.py."""

import argparse
from pathlib import Path


def add_evaluation_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add them to the `gptstar` command."""
    command = commands.add_parser(
        "compare",
        help="set the results of two evaluations against each other, item by item",
        description="Pair the items of A and B, and say for each task how they differ, within which interval, and how "
        "likely chance alone is to do that. B minus A.",
    )
    for name in ("a", "b"):
        command.add_argument(name, type=Path, metavar=name.upper(), help="a results.json of evaluate.py, or its folder")
    command.add_argument("--markdown", action="store_true", help="print a Markdown table instead")
    command.add_argument("--json", action="store_true", help="print JSON instead")
    command.set_defaults(run=_compare)

    group = commands.add_parser("evaluation", help="what evaluation needs, gathered for machines without network")
    parts = group.add_subparsers(metavar="COMMAND", required=True)
    command = parts.add_parser(
        "bundle",
        help="gather the items of tasks in a folder, with hashes and licences",
        description="Write each task's items to FOLDER, for `evaluate.py evaluation.data_dir=FOLDER`. The same command "
        "goes on where an earlier one was interrupted.",
    )
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument(
        "--tasks", metavar="A,B", help="tasks of the harness (default: those that GPT* was published with)"
    )
    command.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before each item, which are items of another split"
    )
    command.add_argument(
        "--from", type=Path, dest="source", metavar="DIR", help="a folder of files to take, not the Hub"
    )
    command.set_defaults(run=_bundle)


def _compare(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from gptstar.evaluation.compare import compare, comparison_markdown, comparison_table
    from gptstar.evaluation.results import read_tasks, to_json

    comparison = compare(read_tasks(options.a), read_tasks(options.b))
    if options.json:
        print(to_json(asdict(comparison)), end="")
    elif options.markdown:
        print(comparison_markdown(comparison))
    else:
        Console().print(comparison_table(comparison))


def _bundle(options: argparse.Namespace) -> None:
    from rich.console import Console

    from gptstar.evaluation.tasks.bundle import bundle
    from gptstar.evaluation.tasks.config import SUITE

    tasks = tuple(options.tasks.split(",")) if options.tasks else SUITE
    bundle(tasks, options.folder, source=options.source, console=Console(), num_fewshot=options.num_fewshot)
