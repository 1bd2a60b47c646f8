"""How we refuse: one line that names the cause and the way out, shown to the user without a traceback."""

import signal

PREEMPTED = signal.SIGUSR2
"""How a scheduler announces that a job's time is over (submitit's way, on SLURM): save, and go back into the queue."""


class Refusal(Exception):
    """Something the user can put right. The message is one line: key or file, value, rule, cure."""


class ConfigError(Refusal):
    """A configuration that can't be run as it stands."""


class UnknownChoice(ConfigError):
    """A name that stands for no class here, such as one of a plugin that was not named."""


class DataError(Refusal):
    """Text, tokenizer, shards or manifest that are missing, damaged or don't belong together."""


class CheckpointError(Refusal):
    """A checkpoint that is missing, damaged, unsafe to read, or does not fit what is asked of it."""


class TrainingError(Refusal):
    """A run that can't go on, such as one whose loss is no longer finite."""


def in_one_line(value: object) -> str:
    """A value, or what somebody else's error says, in one line that is not too long."""
    try:
        said = " ".join(str(value).split()) or repr(value)
    except (ValueError, RecursionError):  # of thousands of digits, or of brackets
        said = f"a huge {type(value).__name__}"
    return said if len(said) < 300 else f"{said[:300]}…"


def with_type(error: BaseException) -> str:
    """Name an error's type and what it says, in one line: `KeyError: 'tokens'`."""
    return f"{type(error).__name__}: {in_one_line(error)}"


class RefusedElsewhere(Refusal):
    """Another rank of this job refused, and says why; this one only ends."""


class RankLost(Refusal):
    """The connection to another rank of this job broke."""


class Interrupted(Refusal):
    """A run that a signal stopped, after it had saved.

    Attributes:
        exit_code: what the process should exit with (128 + the signal's number, as shells expect).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
