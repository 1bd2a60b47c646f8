"""The errors that users see: one line with the cause and the fix, without a traceback."""

import signal

PREEMPTED = signal.SIGUSR2
"""The signal by which a scheduler announces that a job's time is over (submitit's choice on SLURM)."""


class Refusal(Exception):
    """An error that the user can correct. Its message is one line with key or file, value, rule and fix."""


class ConfigError(Refusal):
    """An error in the configuration."""


class UnknownChoice(ConfigError):
    """A name of an unknown class, for instance because its plugin was not given."""


class DataError(Refusal):
    """An error in text, tokenizer, shards or manifest: missing, damaged or inconsistent."""


class CheckpointError(Refusal):
    """An error in a checkpoint: missing, damaged, unsafe to read, or unsuitable."""


class TrainingError(Refusal):
    """An error that ends a run, such as a loss that is no longer finite."""


def in_one_line(value: object) -> str:
    """Return a value, or another library's error message, as a single line of at most 300 characters."""
    try:
        line = " ".join(str(value).split()) or repr(value)
    except (ValueError, RecursionError):  # thousands of digits or brackets
        line = f"a huge {type(value).__name__}"
    return line if len(line) < 300 else f"{line[:300]}…"


def with_type(error: BaseException) -> str:
    """Return an error's type and message as a single line, such as `KeyError: 'tokens'`."""
    return f"{type(error).__name__}: {in_one_line(error)}"


class RefusedElsewhere(Refusal):
    """An error on another rank of this job, which reports it; this rank only ends."""


class RankLost(Refusal):
    """The loss of the connection to another rank of this job."""


class Interrupted(Refusal):
    """The end of a run by a signal, after the run was saved.

    Attributes:
        exit_code: the process's exit code: 128 plus the signal's number, as shells expect.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
