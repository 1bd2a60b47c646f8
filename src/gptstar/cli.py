"""The `gptstar` command, and what it shares with `train.py` and `evaluate.py`: refusing in one line."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar import __version__
from gptstar.data_commands import add_data_commands
from gptstar.errors import Interrupted, RankLost, Refusal, RefusedElsewhere
from gptstar.evaluation_commands import add_evaluation_commands
from gptstar.generation_commands import add_generation_commands
from gptstar.model_commands import add_model_commands
from gptstar.results_commands import add_results_commands
from gptstar.run_commands import add_run_commands

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHOW_ALL = bool(os.environ.get("HYDRA_FULL_ERROR"))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a refusal, ours or Hydra's, into one line on stderr and a non-zero exit. `HYDRA_FULL_ERROR=1` shows all."""
    if SHOW_ALL:
        yield
        return
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print
    try:
        yield
    except RefusedElsewhere as error:
        raise SystemExit(1) from error
    except RankLost as error:  # one line a machine is enough
        _refuse(str(error), 1, speaks=os.environ.get("LOCAL_RANK") == "0")
    except Interrupted as error:
        _refuse(str(error), error.exit_code, speaks=os.environ.get("RANK", "0") == "0")
    except Refusal as error:
        _refuse(str(error), 1)
    except (HydraException, OmegaConfBaseException) as error:
        from gptstar.composing import explain

        _refuse(explain(error), 1)
    except ValueError as error:
        if "Config group override must be" not in str(error):  # what Hydra raises for `model=3`
            raise
        _refuse(f"a group is chosen by the name of one of its files ({error})", 1)
    except BrokenPipeError as error:  # whoever read our output has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # else Python complains when it flushes
        raise SystemExit(128 + signal.SIGPIPE) from error
    except OSError as error:
        _refuse(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)
    except KeyboardInterrupt:
        _refuse("interrupted", 130)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)


@contextlib.contextmanager
def job(composed: "DictConfig") -> Iterator[None]:
    """Run one job that Hydra started, in the folder that Hydra made; a job that is refused does not leave it empty.

    In a sweep a refusal passes, for Hydra to go on with the next job and raise it at the end.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    composed.output = hydra_config.runtime.output_dir  # of a job in a sweep, a folder of its own
    with contextlib.nullcontext() if hydra_config.mode is RunMode.MULTIRUN else one_line_errors():
        try:
            yield
        except Interrupted as error:  # ends a sweep too
            _refuse(str(error), error.exit_code, speaks=os.environ.get("RANK", "0") == "0")
        except Refusal:
            with contextlib.suppress(OSError):  # raised where it is not empty
                Path(composed.output).rmdir()
            raise


def _refuse(message: str, exit_code: int, *, speaks: bool = True) -> None:
    if speaks:
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(exit_code)


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
