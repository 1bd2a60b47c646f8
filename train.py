"""Train a language model: compose, parse, run. `python train.py --help` shows every choice.

What a run does, in order, is in `src/gptstar/run.py`.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gptstar.cli import one_line_errors
from gptstar.config import TrainConfig
from gptstar.run import train


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> None:
    """One run, or one job of a sweep."""
    hydra_config = HydraConfig.get()
    composed.output = hydra_config.runtime.output_dir  # of a job in a sweep, a folder of its own
    with one_line_errors(inside_sweep=hydra_config.mode is RunMode.MULTIRUN):
        train(TrainConfig.parse(composed), OmegaConf.to_yaml(composed, resolve=True))


if __name__ == "__main__":
    with one_line_errors():
        main()
