"""`--plugins` of every command that reads a checkpoint: the modules of the user's own choices, which no file names."""

import argparse


def add_plugins(command: argparse.ArgumentParser) -> None:
    """Let a command that reads checkpoints be told which modules to import first."""
    command.add_argument(
        "--plugins",
        action="extend",
        default=[],
        type=lambda text: text.split(","),
        metavar="MODULE",
        help="a module of yours to import first, which the model needs; or several, with commas",
    )


def import_asked(options: argparse.Namespace) -> None:
    """Import what a command was told to.

    Raises:
        ConfigError: a module can't be imported; says why.
    """
    if getattr(options, "plugins", None):
        from gptstar.choices import import_plugins  # imports pydantic, which --help need not wait for

        import_plugins(tuple(options.plugins))
