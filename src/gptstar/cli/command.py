"""The `gptstar` command."""

import argparse
from collections.abc import Sequence

from gptstar import __version__
from gptstar.cli.data import add_data_commands
from gptstar.cli.evaluation import add_evaluation_commands
from gptstar.cli.generation import add_generation_commands
from gptstar.cli.model import add_model_commands
from gptstar.cli.results import add_results_commands
from gptstar.cli.run import add_run_commands
from gptstar.entry import one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `gptstar` command."""
    options = _parser().parse_args(arguments)
    with one_line_errors():
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptstar",
        description="What is not training (train.py) or evaluation (evaluate.py) of GPT* language models.",
        epilog="gptstar COMMAND --help explains each.",
    )
    parser.add_argument("--version", action="version", version=f"gptstar {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    add_model_commands(commands)
    add_generation_commands(commands)
    add_run_commands(commands)
    add_data_commands(commands)
    add_evaluation_commands(commands)
    add_results_commands(commands)
    return parser


if __name__ == "__main__":
    main()
