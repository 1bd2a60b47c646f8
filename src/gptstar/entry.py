"""The first steps of both scripts and of every command: compose, parse, report errors in one line."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar.errors import ConfigError, Interrupted, RankLost, Refusal, RefusedElsewhere

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHOW_ALL = bool(os.environ.get("HYDRA_FULL_ERROR"))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a refusal or an error of Hydra into one line on stderr and a non-zero exit code.

    With `HYDRA_FULL_ERROR=1`, the whole traceback is shown instead.
    """
    if SHOW_ALL:
        yield
        return
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors instead of printing them
    try:
        yield
    except RefusedElsewhere as error:
        raise SystemExit(1) from error
    except RankLost as error:  # one line per machine is enough
        _refuse(str(error), 1, speaks=os.environ.get("LOCAL_RANK") == "0")
    except Interrupted as error:
        _refuse(str(error), error.exit_code, speaks=os.environ.get("RANK", "0") == "0")
    except Refusal as error:
        _refuse(str(error), 1)
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(explain(error), 1)
    except ValueError as error:
        if "Config group override must be" not in str(error):  # Hydra's error for `model=3`
            raise
        _refuse(f"choose a group by the name of one of its files, as in model=tiny ({error})", 1)
    except BrokenPipeError as error:  # the reader of our output closed the pipe
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
    """Run one job that Hydra started, in the folder that Hydra made. Remove the empty folder if the job is refused.

    In a sweep the refusal is passed on to Hydra, which continues with the next job and raises it at the end.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    composed.output = hydra_config.runtime.output_dir  # in a sweep, the job's own folder
    os.chdir(hydra_config.runtime.cwd)  # relative paths start here, even with hydra.job.chdir
    with contextlib.nullcontext() if hydra_config.mode is RunMode.MULTIRUN else one_line_errors():
        try:
            yield
        except Interrupted as error:  # ends the sweep, too
            _refuse(str(error), error.exit_code, speaks=os.environ.get("RANK", "0") == "0")
        except Refusal:
            _remove_if_empty(
                Path(composed.output), named=any("output=" in each for each in hydra_config.overrides.task)
            )
            raise


def _remove_if_empty(output: Path, *, named: bool) -> None:
    """Remove an empty folder that Hydra made and, unless the user named it, its two parent folders if empty."""
    for folder in (output,) if named else (output, output.parent, output.parent.parent):
        with contextlib.suppress(OSError):  # the folder is not empty, or already gone
            folder.rmdir()


def _refuse(message: str, exit_code: int, *, speaks: bool = True) -> None:
    if speaks:
        from gptstar.terminal import plain  # imports rich

        print(f"error: {plain(' '.join(message.splitlines()))}", file=sys.stderr)
    raise SystemExit(exit_code)


VALUE_WITH_EQUALS = re.compile(r"([+~]*\w[\w./@-]*=)([\w./:*?+%@~-]+=[\w./:*?+%@~=-]*)")


def with_quoted_values(words: Sequence[str]) -> list[str]:
    """Quote values that contain `=`, such as the path `text/lang=en/*`, as Hydra's grammar requires."""
    return [VALUE_WITH_EQUALS.sub(r"\1'\2'", word) if VALUE_WITH_EQUALS.fullmatch(word) else word for word in words]


def conf_folder() -> Path:
    """Return the folder of the configuration: inside an installed package, next to `src` in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


def compose(config_name: str, overrides: Sequence[str], config_dir: Path | None = None) -> "DictConfig":
    """Compose the configuration of `train.py` or `evaluate.py` for these overrides.

    Args:
        config_dir: a folder with the user's own groups, like Hydra's `--config-dir`.

    Raises:
        ConfigError: the folder doesn't exist.
    """
    import hydra

    from gptstar.defaults import follow_text, register_run_name, with_neutral_defaults

    words = with_quoted_values(overrides)
    if config_name == "train":
        words = with_neutral_defaults(words)
    register_run_name()
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder: give the folder that holds your groups")
        words.append(f"hydra.searchpath=['file://{config_dir.resolve()}']")
    with hydra.initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        composed = hydra.compose(config_name, words)
    if config_name == "train":
        follow_text(composed, words)
        take_initial_model(composed, words)
    return composed


def take_initial_model(composed: "DictConfig", words: Sequence[str]) -> None:
    """Copy the model and the tokenizer of the checkpoint named by `init_from`, if any, into the configuration.

    Args:
        words: the overrides from which the configuration was composed.

    Raises:
        ConfigError: an override sets the model, too; or neither the checkpoint nor `data.tokenizer` gives a tokenizer.
        CheckpointError: the checkpoint is missing or damaged.
    """
    if (given := composed.get("init_from")) is None:
        return
    if not isinstance(given, str):
        raise ConfigError(f"init_from={given} is not a path: give the path of a checkpoint")
    from filelock import FileLock
    from omegaconf import OmegaConf
    from platformdirs import user_cache_path

    from gptstar.checkpoint.kept import LAST
    from gptstar.checkpoint.read import find, read
    from gptstar.choices import import_plugins
    from gptstar.config import plugin_names
    from gptstar.data.tokenizer import Tokenizer
    from gptstar.files import write_text
    from gptstar.training.status import read_config

    for word in words:
        if re.match(r"[+~]*model(?!\.dropout=)[.=@]", word):
            raise ConfigError(f"init_from={given} sets the model, and so does {word}: drop one of them")
    OmegaConf.set_struct(composed, False)
    output = Path(composed.output)
    if (output / LAST).exists():  # the run has begun: its config.yaml names the checkpoint
        try:
            begun = read_config(output)
            known = begun["init_from"], begun["model"], begun["data"]["tokenizer"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{output / 'config.yaml'} is damaged or missing: choose another output") from error
        if not known[0] or (Path(given).exists() and str(find(Path(given))) != known[0]):
            raise ConfigError(
                f"output={output} holds a run that did not begin with init_from={given}: choose another output"
            )
        composed.init_from, composed.model, composed.data.tokenizer = known
        return
    plugins = composed.plugins
    import_plugins(plugin_names(plugins if isinstance(plugins, str) else list(plugins)))
    path = find(Path(given))
    checkpoint = read(path)
    composed.init_from = str(path)
    composed.model = checkpoint.model.as_dict() | {"dropout": composed.model.dropout}
    if composed.data.get("tokenizer") is None:
        if checkpoint.tokenizer is None:
            raise ConfigError(
                f"init_from={given} has no tokenizer: give data.tokenizer=FILE, the one it was trained with"
            )
        tokenizer = Tokenizer(checkpoint.tokenizer)
        file = user_cache_path("gptstar") / "tokenizers" / f"{tokenizer.fingerprint}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # other ranks and jobs may write the same file
            if not file.exists():
                write_text(file, tokenizer.json_text)
        composed.data.tokenizer = str(file)


def explain(error: Exception) -> str:
    """Explain an error of Hydra in one line, with the nearest valid name."""
    from hydra.errors import OverrideParseException

    from gptstar.config import EvaluateConfig, TrainConfig
    from gptstar.keys import unknown_key, valid_keys

    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"{error.override!r} is not KEY=VALUE: write each override in that form"
        return (
            f"{error.override!r} is not a valid KEY=VALUE for Hydra: put two pairs of quotes around a value with "
            f"characters other than letters, digits and /.:-+%@?|, as in \"data.files='a (1).txt'\""
        )
    text = str(error)
    first = text.strip().partition("\n")[0]
    if match := re.search(r"Could not override '([^']+)'", first):
        key = match[1].lstrip("+~").partition("@")[0]
        if key.startswith("trainer."):
            return _explain_trainer_option(key.removeprefix("trainer."))
        group, _, leaf = key.partition(".")
        if choices := [path.stem for path in sorted((conf_folder() / group).glob("*.yaml")) if _sets(path, leaf)]:
            return f"{key} is a key of {' or '.join(f'{group}={choice}' for choice in choices)}: choose that, too"
        _import_named_plugins()
        groups = [entry.name for entry in conf_folder().iterdir() if entry.is_dir()]
        return unknown_key(key, list(dict.fromkeys([*valid_keys(TrainConfig), *valid_keys(EvaluateConfig), *groups])))
    if match := re.search(r"Could not find '([^']+)'", first):
        group, _, name = match[1].rpartition("/")
        if match[1] == "hydra/launcher/submitit_slurm":
            return "launcher=slurm needs the package hydra-submitit-launcher: pip install 'gptstar[slurm]'"
        options = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        near = get_close_matches(name, options, 1)
        hint = f"did you mean {group}={near[0]}?" if near else f"choose from {', '.join(options)}"
        return f"{group}={name} does not exist: {hint}"
    return first


def _import_named_plugins() -> None:
    """Import the plugins named on this command line, so that the keys of their classes are known."""
    from gptstar.choices import import_plugins

    named = " ".join(word for word in sys.argv[1:] if word.startswith("plugins="))
    with contextlib.suppress(ConfigError):  # an error here would hide the one being explained
        import_plugins(tuple(re.findall(r"[\w.]+", named.replace("plugins=", ""))))


def _sets(path: Path, key: str) -> bool:
    """Return whether a configuration file sets this key."""
    return bool(re.search(rf"^{re.escape(key)}:", path.read_text(encoding="utf-8"), re.MULTILINE))


def _explain_trainer_option(key: str) -> str:
    from gptstar.training.options import check_trainer_options

    try:
        check_trainer_options({key: None})
    except ConfigError as error:
        return str(error)
    return f"trainer.{key} is not listed in train.yaml: give it as +trainer.{key}=VALUE"
