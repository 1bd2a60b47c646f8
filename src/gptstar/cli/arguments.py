"""Helpers for all commands: adding a command, and the arguments that several commands take."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run: TypeAlias = Callable[[argparse.Namespace], None]


def add_command(
    commands: Commands, name: str, run: Run, text: str, description: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that calls `run` with the parsed arguments.

    Args:
        text: the command's line in the list of commands, and its description unless one is given.
    """
    description = description or f"{text[0].upper()}{text[1:]}."
    command = commands.add_parser(name, help=text, description=description, epilog=epilog)
    command.set_defaults(run=run)
    return command


def add_checkpoint(command: argparse.ArgumentParser, text: str = "a checkpoint, or a run directory") -> None:
    """Add the argument CHECKPOINT to a command."""
    text = f"{text}; PATH:averaged selects averaged weights"
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=text)


def add_plugins(command: argparse.ArgumentParser) -> None:
    """Add the option --plugins to a command that reads checkpoints."""
    command.add_argument(
        "--plugins",
        action="extend",
        default=[],
        type=lambda text: text.split(","),
        metavar="MODULE",
        help="your module that the model needs; several: A,B (imported first)",
    )
