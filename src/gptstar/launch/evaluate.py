"""`evaluate.py` and `gptstar evaluate`: compose, parse, run.

The checkpoint explains itself: architecture, tokenizer, training context and text are read from it.
"""

import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from gptstar.entry import conf_folder, job, one_line_errors, with_quoted_values
from gptstar.errors import ConfigError
from gptstar.terminal import Terminal

if TYPE_CHECKING:
    from gptstar.config import EvaluateConfig


@hydra.main(version_base="1.3", config_path=str(conf_folder().resolve()), config_name="evaluate")
def evaluate(composed: DictConfig) -> None:
    """Evaluate checkpoints: on harness tasks, by context length, on recall, or their attention heads."""
    from gptstar.config import EvaluateConfig  # here, as `--help` need not wait for PyTorch

    with job(composed):
        run(EvaluateConfig.parse(composed).check_here())


def run(config: "EvaluateConfig") -> None:
    """Read the checkpoints, score them, and write the results."""
    from gptstar.checkpoint.identity import read_with_identity
    from gptstar.checkpoint.read import find
    from gptstar.data.tokenizer import Tokenizer
    from gptstar.evaluation.heads import HeadsConfig
    from gptstar.evaluation.length.config import LengthConfig
    from gptstar.evaluation.recall.config import RecallConfig
    from gptstar.ranks import joined

    if (config.output / "results.json").exists():
        raise ConfigError(f"output={config.output} holds results already: choose another folder")
    console, paths = Terminal(), [find(path) for path in config.checkpoints]
    named = [read_with_identity(path) for path in paths]
    if config.tokenizer is not None:
        given = Tokenizer.from_file(config.tokenizer).json_text
        named = [(who, replace(checkpoint, tokenizer=given)) for who, checkpoint in named]
    device, evaluation, output = config.hardware.device(), config.evaluation, config.output
    with joined(device.type) as ranks:
        if not ranks.first:
            with contextlib.suppress(OSError):  # the folder that Hydra made for this rank; results make their own
                output.rmdir()
        if isinstance(evaluation, LengthConfig):
            from gptstar.evaluation.length.study import study

            if ranks.first:
                study(named, evaluation, shards=config.shards, device=device, console=console, output=output)
        elif isinstance(evaluation, HeadsConfig):
            from gptstar.evaluation.heads.study import study as study_heads

            if ranks.first:
                study_heads(named[0], evaluation, shards=config.shards, device=device, console=console, output=output)
        elif isinstance(evaluation, RecallConfig):
            from gptstar.evaluation.recall.study import study as study_recall

            if ranks.first:
                study_recall(named, evaluation, device=device, console=console, output=output)
        else:
            from gptstar.evaluation.tasks.suite import evaluate_and_report

            evaluate_and_report(*named[0], evaluation, device, output, console)


def main() -> None:
    """Do what the words of the command line say."""
    sys.argv[1:] = with_quoted_values(sys.argv[1:])
    with one_line_errors():
        evaluate()
