"""`gptstar study save` and `gptstar study restore`: finished runs in a table that a repository can hold."""

import argparse
from pathlib import Path

from gptstar.cli.arguments import Commands, add_command

RESTORING = (
    "Write the runs of a table into OUTPUT as run directories without checkpoints: `gptstar report`, gptstar.results "
    "and the notebooks read them as any run. Runs that are there already stay as they are."
)
SAVING = (
    "Add the finished runs below FOLDER to TABLE, or replace their earlier states: settings, versions, losses, and the "
    "results of reading, recall and heads; neither checkpoints nor pictures."
)


def add_study_commands(commands: Commands) -> None:
    """Add them to the `gptstar` command."""
    group = commands.add_parser("study", help="finished runs in one small table, for a repository")
    parts = group.add_subparsers(metavar="COMMAND", required=True)
    add = add_command(parts, "restore", _restore, "write the runs of a table into a folder", RESTORING).add_argument
    add("table", type=Path, metavar="TABLE", help="such as docs/studies/extrapolation.jsonl")
    add("output", type=Path, metavar="OUTPUT")
    add = add_command(parts, "save", _save, "add the finished runs of a folder to a table", SAVING).add_argument
    add("runs", type=Path, metavar="FOLDER", help="a folder of runs, such as the output of a sweep")
    add("table", type=Path, metavar="TABLE", help="it is made if it does not exist")


def _restore(options: argparse.Namespace) -> None:
    from gptstar.errors import ConfigError
    from gptstar.launch.output_lock import lock_output
    from gptstar.launch.study_table import StudyTable

    table = StudyTable(options.table)
    if not (runs := table.read()):
        raise ConfigError(f"{options.table} holds no run: give a table that a study has written")
    with lock_output(options.output):
        restored = table.restore(options.output)
    there = f"; {len(runs) - len(restored)} were there already" if len(restored) < len(runs) else ""
    print(f"restored {len(restored)} of {len(runs)} runs into {options.output}{there}")
    print(f"next: gptstar report {options.output}")


def _save(options: argparse.Namespace) -> None:
    from gptstar.errors import ConfigError
    from gptstar.launch.study_table import StudyTable
    from gptstar.results.run import find_runs

    runs = find_runs([options.runs])
    if options.runs.resolve() in [run.path.resolve() for run in runs]:
        raise ConfigError(f"{options.runs} is a run: give the folder that the runs of the study are in")
    changed = StudyTable(options.table).save(options.runs, [run.path for run in runs])
    unfinished = sum(run.state != "finished" for run in runs)
    left_out = f"; {unfinished} are not finished, and left out" if unfinished else ""
    print(f"{options.table}: {len(changed)} of {len(runs)} runs are new or have changed{left_out}")
