"""Evaluate a checkpoint: compose, parse, run. `python evaluate.py --help` shows every choice.

The checkpoint explains itself: architecture, tokenizer, training context and text are read from it.
"""

from dataclasses import asdict

import hydra
from omegaconf import DictConfig
from rich.console import Console

from gptstar.checkpoint.format import find, read
from gptstar.cli import job, one_line_errors
from gptstar.config import EvaluateConfig
from gptstar.errors import ConfigError
from gptstar.evaluation.length import loss_by_length, text_and_lengths
from gptstar.evaluation.plots import plot_context_length
from gptstar.evaluation.tables import length_table, to_json


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    """Loss against context length, as a table, a picture and `results.json`."""
    with job(composed):
        evaluate(EvaluateConfig.parse(composed))


def evaluate(config: EvaluateConfig) -> None:
    """Read, score, and write what was found."""
    console = Console()
    if (config.output / "results.json").exists() or (config.output / "context_length.png").exists():
        raise ConfigError(f"output={config.output} holds results already: choose another folder")
    path = find(config.checkpoint)
    checkpoint = read(path)
    shards, lengths, trained_at = text_and_lengths(checkpoint, config.evaluation, config.shards)
    device = config.hardware.device()
    results = loss_by_length(
        checkpoint.build().to(device),
        shards,
        lengths,
        max_tokens=config.evaluation.max_tokens,
        device=device,
        bf16=config.hardware.resolved_precision() == "bf16",
        console=console,
    )
    console.print(length_table(results, trained_at))
    plot_context_length(results, trained_at, config.output / "context_length.png", f"{path.parent.name}/{path.name}")
    text = {"shards": str(shards.folder), "fingerprint": shards.manifest.fingerprint}
    found = {"checkpoint": str(path.resolve()), "text": text, "lengths": [asdict(result) for result in results]}
    (config.output / "results.json").write_text(to_json(found), encoding="utf-8")
    console.print(f"in {config.output}: context_length.png, results.json", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    with one_line_errors():
        main()
