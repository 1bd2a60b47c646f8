"""What the jobs of a sweep are called: by the values that differ, and by nothing else."""

import contextlib
import logging
import re
import sys
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


def job_name(task_overrides: Sequence[str], command_line: Sequence[str]) -> str:
    """The folder of a job, such as `context_length-128_seed-0`; it holds no `=`, `,`, `/` or space.

    A run by itself that a scheduler is to start has no folder of its own in the output: `.`.

    Args:
        task_overrides: of this job, each with one value.
        command_line: of the sweep, some with several.
    """
    parser = OverridesParser.create()
    given = parser.parse_overrides([word for word in command_line if "=" in word and not word.startswith("-")])
    swept = {override.key_or_group for override in given if override.is_sweep_override()}
    parts = []
    for override in parser.parse_overrides(list(task_overrides)):
        if override.key_or_group in swept:
            leaf = override.key_or_group.rpartition(".")[2]
            parts.append(f"{leaf}-{override.get_value_element_as_str()}")
    alone = "." if {"-m", "--multirun"}.isdisjoint(command_line) else "only"
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts)) or alone


def register_job_names() -> None:
    """Let the configuration name a job's folder as `${job_name:${hydra.overrides.task}}`."""
    words = sys.argv[1:]  # now: a job of a cluster, which gets this function by pickle, was not started by them
    OmegaConf.register_new_resolver("job_name", lambda overrides: job_name(overrides, words), replace=True)


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
