"""From words on a command line to a configuration, and one line for what is wrong with them."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import hydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from gptstar.config import EvaluateConfig, TrainConfig, unknown_key, valid_keys
from gptstar.errors import ConfigError
from gptstar.training.options import check_trainer_options


def conf_folder() -> Path:
    """Where the configuration lies: in the package once it is installed, beside `src` in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration that `train.py` or `evaluate.py` composes for these overrides."""
    with hydra.initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return hydra.compose(config_name, list(overrides))


def explain(error: Exception) -> str:
    """One line for an error of Hydra's, with the nearest valid name."""
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is not KEY=VALUE as Hydra reads it: quote a value that holds more than letters, "
            f"digits and /.:-+%@?| by two pairs of quotes, as in \"data.files='a (1).txt'\""
        )
    text = str(error)
    first = text.strip().partition("\n")[0]
    if found := re.search(r"Could not override '([^']+)'", first):
        key = found[1].lstrip("+~").partition("@")[0]
        if key.startswith("trainer."):
            return _explain_trainer_option(key.removeprefix("trainer."))
        group, _, leaf = key.partition(".")
        if choices := [path.stem for path in sorted((conf_folder() / group).glob("*.yaml")) if _sets(path, leaf)]:
            return f"{key} is a key of {' or '.join(f'{group}={choice}' for choice in choices)}: choose that too"
        groups = [entry.name for entry in conf_folder().iterdir() if entry.is_dir()]
        return unknown_key(key, list(dict.fromkeys([*valid_keys(TrainConfig), *valid_keys(EvaluateConfig), *groups])))
    if found := re.search(r"Could not find '([^']+)'", first):
        group, _, name = found[1].rpartition("/")
        if found[1] == "hydra/launcher/submitit_slurm":
            return "launcher=slurm needs the package hydra-submitit-launcher: pip install 'gptstar[slurm]'"
        options = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        near = get_close_matches(name, options, 1)
        hint = f"did you mean {group}={near[0]}?" if near else f"there are {', '.join(options)}"
        return f"{group}={name} does not exist: {hint}"
    return first


def _sets(path: Path, key: str) -> bool:
    """Whether a file of the configuration has this key."""
    return bool(re.search(rf"^{re.escape(key)}:", path.read_text(encoding="utf-8"), re.MULTILINE))


def _explain_trainer_option(key: str) -> str:
    try:
        check_trainer_options({key: None})
    except ConfigError as error:
        return str(error)
    return f"trainer.{key} is an option that train.yaml does not list: give it as +trainer.{key}=VALUE"
