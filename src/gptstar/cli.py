"""The `gptstar` command, and what it shares with `train.py` and `evaluate.py`: composing, and refusing in one line."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from gptstar import __version__
from gptstar.errors import ConfigError, Interrupted, Refusal

SHOW_ALL = bool(os.environ.get("HYDRA_FULL_ERROR"))


def conf_folder() -> Path:
    """Where the configuration lies: in the package once it is installed, beside `src` in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


@contextlib.contextmanager
def one_line_errors(*, inside_sweep: bool = False) -> Iterator[None]:
    """Turn a refusal, ours or Hydra's, into one line on stderr and a non-zero exit. `HYDRA_FULL_ERROR=1` shows all.

    Args:
        inside_sweep: let it pass instead, for Hydra to go on with the next job and raise it at the end.
    """
    if SHOW_ALL or inside_sweep:
        yield
        return
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print
    try:
        yield
    except Interrupted as error:
        _refuse(str(error), error.exit_code)
    except Refusal as error:
        _refuse(str(error), 1)
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(explain(error), 1)
    except OSError as error:
        _refuse(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)
    except KeyboardInterrupt:
        _refuse("interrupted", 130)


def _refuse(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(exit_code)


def explain(error: Exception) -> str:
    """One line for an error of Hydra's, with the nearest valid name."""
    text = str(error)
    first = text.strip().partition("\n")[0]
    if found := re.search(r"Could not override '([^']+)'", first):
        from gptstar.config import EvaluateConfig, TrainConfig, unknown_key, valid_keys

        key = found[1].lstrip("+~").partition("@")[0]
        groups = [entry.name for entry in conf_folder().iterdir() if entry.is_dir()]
        return unknown_key(key, [*valid_keys(TrainConfig), *valid_keys(EvaluateConfig), *groups])
    if found := re.search(r"Could not find '([^']+)'", first):
        group, _, name = found[1].rpartition("/")
        options = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        near = get_close_matches(name, options, 1)
        hint = f"did you mean {group}={near[0]}?" if near else f"there are {', '.join(options)}"
        return f"{group}={name} does not exist: {hint}"
    return first


def compose(config_name: str, overrides: Sequence[str]):  # type: ignore[no-untyped-def]
    """The configuration that `train.py` or `evaluate.py` composes for these overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return hydra_compose(config_name, list(overrides))
