"""The `gptstar` command, one file per subject."""

from gptstar.cli.command import main

__all__ = ["main"]
