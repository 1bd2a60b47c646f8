"""What the jobs of a sweep are called."""

import contextlib
import logging
import re
import sys
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf


def job_name(
    task_overrides: Sequence[str], params: Mapping[str, object] | None, command_line: Sequence[str] | None = None
) -> str:
    """The folder of a job, such as `context_length-128_seed-0`; it holds no `=`, `,`, `/` or space.

    A run by itself that a scheduler is to start has no folder of its own in the output: `.`.

    Args:
        task_overrides: of this job, each with one value.
        params: what the configuration itself sweeps over: `hydra.sweeper.params`.
        command_line: of the sweep, some words with several values; this process's own unless given.
    """
    words = sys.argv[1:] if command_line is None else command_line
    parts = []
    for override in OverridesParser.create().parse_overrides(list(task_overrides)):
        if override.key_or_group in swept_over(words, params):
            leaf = override.key_or_group.rpartition(".")[2]
            parts.append(f"{leaf}-{override.get_value_element_as_str()}")
    sweeps = params or not {"-m", "--multirun"}.isdisjoint(words)
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts)) or ("only" if sweeps else ".")


def swept_over(command_line: Sequence[str], params: Mapping[str, object] | None) -> dict[str, Override]:
    """Return what has several values, by key; the command line's own word on a key counts."""
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [word for word in command_line if "=" in word and not word.startswith("-")]
    given = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(words)}
    return {key: override for key, override in given.items() if override.is_sweep_override()}


def register_job_names() -> None:
    """Let the configuration name a job's folder as `${job_name:${hydra.overrides.task},${hydra.sweeper.params}}`."""
    words = sys.argv[1:]  # now: a job of a cluster, which gets this function by pickle, was not started by them
    OmegaConf.register_new_resolver(
        "job_name", lambda overrides, params: job_name(overrides, params, words), replace=True
    )


def announce_submission() -> None:
    """Where the run goes to SLURM: say where to look, before the command waits for its end."""
    if "launcher=slurm" in sys.argv[1:]:
        print(
            "submitting to SLURM: scripts and logs are in .slurm in the output, squeue --me shows the jobs, and Ctrl-C "
            "leaves them to themselves",
            flush=True,
        )
        with contextlib.suppress(ImportError):
            import submitit  # first, as it sets its log up  # noqa: F401
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it complains of every cluster without accounting
