"""The `gptstar` command, one file per subject."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from gptstar import __version__
from gptstar.cli.data import add_data_commands
from gptstar.cli.generation import add_generation_commands
from gptstar.cli.model import add_model_commands
from gptstar.cli.results import add_results_commands
from gptstar.cli.run import add_run_commands
from gptstar.cli.study import add_study_commands
from gptstar.entry import one_line_errors

SCRIPTS = {
    "train": "train a language model, as train.py does",
    "evaluate": "evaluate a checkpoint, as evaluate.py does",
    "lm_eval": "run lm-evaluation-harness with --model gptstar --model_args path=CHECKPOINT",
}
"""Commands whose arguments Hydra or the harness parses."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `gptstar` command."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in SCRIPTS:
        name, sys.argv = words[0], [f"gptstar {words[0]}", *words[1:]]  # they parse sys.argv
        import_module(f"gptstar.launch.{name}").main()
        return
    parser = build_parser()
    _, rest = parser.parse_known_args(words)
    if rest and words[-len(rest) :] == rest and not any(word.startswith("-") for word in rest):
        # argparse looks for an optional positional argument before the options; move it there.
        options_begin = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
        words = [*words[:options_begin], *rest, *words[options_begin : -len(rest)]]
    options = parser.parse_args(words)
    with one_line_errors():
        if getattr(options, "plugins", None):
            from gptstar.choices import import_plugins  # imports pydantic, which would slow --help down

            import_plugins(tuple(options.plugins))
        options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands but those in `SCRIPTS`, which it only lists."""
    parser = argparse.ArgumentParser(
        prog="gptstar",
        description="Train, evaluate, study and use GPT* language models.",
        epilog="gptstar COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"gptstar {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in SCRIPTS.items():
        commands.add_parser(name, help=text, add_help=False)
    add_model_commands(commands)
    add_generation_commands(commands)
    add_run_commands(commands)
    add_data_commands(commands)
    add_results_commands(commands)
    add_study_commands(commands)
    return parser
