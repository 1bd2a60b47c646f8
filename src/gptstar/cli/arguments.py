"""What commands share: how one is added, and the arguments that several of them take."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run: TypeAlias = Callable[[argparse.Namespace], None]


def add_command(
    commands: Commands, name: str, run: Run, text: str, description: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that calls `run` with what was typed.

    Args:
        text: the command's line in the list of commands; by default also its description, as a sentence.
    """
    description = description or f"{text[0].upper()}{text[1:]}."
    command = commands.add_parser(name, help=text, description=description, epilog=epilog)
    command.set_defaults(run=run)
    return command


def add_checkpoint(command: argparse.ArgumentParser, text: str = "a checkpoint, or a run directory") -> None:
    """Let a command take the path of a checkpoint."""
    text = f"{text}; PATH:averaged for its averaged weights"
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=text)


def add_plugins(command: argparse.ArgumentParser) -> None:
    """Let a command that reads checkpoints take the user's modules to import first."""
    command.add_argument(
        "--plugins",
        action="extend",
        default=[],
        type=lambda text: text.split(","),
        metavar="MODULE",
        help="a module of yours to import first, which the model needs; or several, with commas",
    )
