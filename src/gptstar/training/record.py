"""The record of a run: where it starts, what it saves and measures, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from gptstar.checkpoint.kept import LAST
from gptstar.checkpoint.read import parted
from gptstar.errors import ConfigError
from gptstar.evaluation.length.config import ReadingConfig
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.fields import Before, Count, Role, Words, check_ranges
from gptstar.training.options import check_trainer_options
from gptstar.training.tracker import Tracker

RESUME_WORDS = ("auto", "never")


@dataclass(frozen=True)
class Record:
    """The record of a run: where it starts, what it saves and measures, and where.

    Attributes:
        name: the name of the run, in reports and trackers.
        output: the run directory.
        resume: `auto` continues from the run directory's last checkpoint if there is one; a path continues from that
            checkpoint; `never` refuses a directory that holds a run.
        branch_from: a checkpoint to start from, whose schedule must match this run's up to that step.
        init_from: a checkpoint whose model, weights and tokenizer a new run takes; all else begins anew.
        checkpoint_every: steps from one checkpoint to the next.
        validate_every: steps from one validation to the next.
        log_every: steps from one line of `metrics.csv` to the next.
        checkpoint_keep: how many of the newest checkpoints to keep; the best is kept too.
        report: after the last step, compare with a bigram model, read beyond the training context, and sample.
        reading: the study of context length after the last step, if it names lengths.
        final_studies: further studies after the last step, at the lengths of `reading`: `recall`, `heads`.
        evaluation: the benchmark tasks to score during training, if `evaluation.every_n_steps` is set.
        tags: your own words, by which `gptstar runs --tag` finds the run.
        jobs_at_once: how many jobs of a sweep run at the same time on one machine.
        trainer: options passed through to Lightning's Trainer.
        plugins: modules to import, which register choices of your own.
    """

    name: str
    output: Path
    resume: str
    branch_from: Annotated[Path | None, Role.CHANGEABLE]
    init_from: Annotated[Path | None, Role.CHANGEABLE]
    checkpoint_every: Count
    checkpoint_keep: Count
    validate_every: Annotated[Count, Role.MEASURE]
    log_every: Count
    report: Annotated[bool, Role.MEASURE]
    reading: Annotated[ReadingConfig, Role.MEASURE]
    evaluation: Annotated[TasksConfig, Role.MEASURE]
    tracker: Tracker
    jobs_at_once: Count
    trainer: Annotated[dict[str, Any], Role.MACHINE]
    plugins: tuple[str, ...] = ()
    tags: Words = ()
    final_studies: Annotated[tuple[Literal["recall", "heads"], ...], Role.MEASURE, Before([])] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "")
        if self.branch_from is not None and self.resume != "auto":
            raise ConfigError(f"branch_from={self.branch_from} and resume={self.resume}: give one of them")
        if self.init_from is not None and (self.branch_from is not None or self.resume not in RESUME_WORDS):
            raise ConfigError(
                f"init_from={self.init_from} begins a run; branch_from and resume=PATH continue one: give one of them"
            )
        if self.evaluation.every_n_steps is not None and self.evaluation.cache is not None:
            raise ConfigError("evaluation.cache can't be used during training: leave it out")
        if self.final_studies and not self.reading.reads:
            raise ConfigError(
                f"final_studies=[{','.join(self.final_studies)}] are done at the lengths of reading, which names none: "
                "give reading.multiples=[1,2,4,8]"
            )
        if len(set(self.final_studies)) < len(self.final_studies):
            raise ConfigError(f"final_studies=[{','.join(self.final_studies)}] names one twice: name each once")
        check_trainer_options(self.trainer)

    def check_here(self) -> None:
        """Check that the files and packages that are named exist on this machine.

        Raises:
            ConfigError: one is missing.
        """
        began = (self.output / LAST).exists()  # then the run continues from its own
        initial = self.init_from and parted(self.init_from)[0]
        for key, path in (("branch_from", self.branch_from), ("init_from", initial)):
            if path is not None and not path.exists() and not began:
                raise ConfigError(f"{key}={path} does not exist: give the path of a checkpoint")
        if self.resume not in RESUME_WORDS and not Path(self.resume).exists():
            raise ConfigError(
                f"resume={self.resume} is neither auto, never, nor a checkpoint that exists: give one of these"
            )
        self.tracker.check_here()
        self.evaluation.check_here()

    @property
    def source(self) -> str:
        """The start of the run: `auto`, `never`, or the path of a checkpoint."""
        return str(self.branch_from or self.init_from or self.resume)
