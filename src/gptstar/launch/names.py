"""Names of the jobs of a sweep."""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from gptstar.errors import ConfigError

UNSAFE = r"[^\w.+-]+"
"""Characters that are replaced in a folder's name, so that its path can be pasted into an override."""


def job_name(
    task_overrides: Sequence[str], params: Mapping[str, object] | None, command_line: Sequence[str] | None = None
) -> str:
    """Name the folder of a job, such as `context_length-128_seed-0`, without `=`, `,`, `/` or space.

    Return `.` for a single run that a scheduler starts: its folder is the output itself.

    Args:
        task_overrides: the overrides of this job, each with one value.
        params: the sweep that the configuration defines, `hydra.sweeper.params`.
        command_line: the arguments of the sweep, some with several values; by default those of this process.
    """
    words = sys.argv[1:] if command_line is None else command_line
    swept, parts = swept_over(words, params), []
    for override in OverridesParser.create().parse_overrides(list(task_overrides)):
        if override.key_or_group in swept:
            leaf = re.sub(UNSAFE, "-", override.key_or_group.rpartition(".")[2])
            parts.append(f"{leaf}-{_value_name(override, swept[override.key_or_group])}")
    sweeps = params or not {"-m", "--multirun"}.isdisjoint(words)
    return "_".join(parts) or ("only" if sweeps else ".")


def _value_name(override: Override, sweep: Override) -> str:
    """Name a value for a folder's name; add a hash if another value of the sweep would have the same name."""
    value = override.get_value_element_as_str()
    others = set(values_of(sweep)) - {value}
    name = re.sub(UNSAFE, "-", value)
    if name not in {re.sub(UNSAFE, "-", other) for other in others}:
        return name
    return f"{name}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def values_of(sweep: Override) -> list[str]:
    """List the values of a sweep. A glob or an interval has no listed values: return an empty list."""
    return list(sweep.sweep_string_iterator()) if sweep.is_choice_sweep() or sweep.is_range_sweep() else []


def check_values_differ(swept: Mapping[str, Override]) -> None:
    """Refuse a sweep with a repeated value, because two of its jobs would share a folder.

    Raises:
        ConfigError: names the key and the value.
    """
    for key, override in swept.items():
        values = values_of(override)
        if twice := [value for value in values if values.count(value) > 1]:
            raise ConfigError(
                f"{key}={twice[0]} is given twice, and its jobs would share a folder: give each value once"
            )


def swept_over(command_line: Sequence[str], params: Mapping[str, object] | None) -> dict[str, Override]:
    """Return the overrides with several values, by key. The command line takes precedence over `params`."""
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [word for word in command_line if "=" in word and not word.startswith("-")]
    given = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(words)}
    return {key: override for key, override in given.items() if override.is_sweep_override()}


def register_job_names() -> None:
    """Let the configuration name a job's folder as `${job_name:${hydra.overrides.task},${hydra.sweeper.params}}`."""
    words = sys.argv[1:]  # read now: a cluster job receives this function by pickle, and its own sys.argv differs
    OmegaConf.register_new_resolver(
        "job_name", lambda overrides, params: job_name(overrides, params, words), replace=True
    )
