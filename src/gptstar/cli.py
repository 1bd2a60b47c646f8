"""The `gptstar` command, and what it shares with `train.py` and `evaluate.py`: refusing in one line."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar import __version__
from gptstar.data_commands import add_data_commands
from gptstar.errors import CheckpointError, Interrupted, RankLost, Refusal, RefusedElsewhere
from gptstar.evaluation_commands import add_evaluation_commands
from gptstar.generation_commands import add_generation_commands
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

    command = commands.add_parser(
        "import",
        help="turn a checkpoint of the original GPT* code into one of ours",
        description="Read FILE, in either layout of the original code, and write OUT. The shape is inferred; the "
        "optimizer's state comes along where FILE holds it, so that training can go on: train.py resume=OUT.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="a .pth.tar of the original code")
    command.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    command.add_argument("--heads", type=int, metavar="H", help="attention heads, where no ALiBi slopes are stored")
    command.add_argument("--tokenizer", type=Path, metavar="FILE", help="`tokenizers` JSON to store with the model")
    command.set_defaults(run=_import)

    command = commands.add_parser(
        "consolidate",
        help="make one file of a checkpoint that several ranks wrote",
        description="Read CHECKPOINT, verified, and write OUT: a file, with nothing lost.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory")
    command.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    command.add_argument("--weights-only", action="store_true", help="leave out what only training needs: two thirds")
    command.set_defaults(run=_consolidate)

    add_generation_commands(commands)
    add_run_commands(commands)
    add_data_commands(commands)
    add_evaluation_commands(commands)
    add_results_commands(commands)
    return parser


def _import(options: argparse.Namespace) -> None:
    from gptstar.checkpoint.format import write
    from gptstar.checkpoint.legacy import read_legacy
    from gptstar.data.tokenizer import Tokenizer

    _refuse_existing(options.out)
    tokenizer = Tokenizer.from_file(options.tokenizer) if options.tokenizer else None
    checkpoint = read_legacy(options.file, n_heads=options.heads, tokenizer=tokenizer)
    write(options.out, checkpoint)
    model, training = checkpoint.model, checkpoint.training
    print(
        f"{options.out}: {model.n_params:,} parameters, {model.n_layers} layers of {model.d_model}, "
        f"{model.n_heads} heads, {model.residual}, {model.positions}, vocabulary {model.n_vocab:,}; "
        + (f"training goes on at step {training.step:,}" if training else "weights only")
    )


def _consolidate(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from gptstar.checkpoint.format import find, read, write

    _refuse_existing(options.out)
    checkpoint = read(path := find(options.checkpoint))
    write(options.out, replace(checkpoint, training=None) if options.weights_only else checkpoint)
    print(f"{options.out}: {checkpoint.model.n_params:,} parameters of {path}, {options.out.stat().st_size:,} bytes")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{path} exists: nothing is overwritten; choose another name or remove it")


if __name__ == "__main__":
    main()
