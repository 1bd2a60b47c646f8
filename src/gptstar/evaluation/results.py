"""The results of an evaluation, and reading and writing of `results.json`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from gptstar import __version__
from gptstar.errors import ConfigError, in_one_line
from gptstar.files import read_json, write_text

FORMAT = "gptstar results"
FORMAT_VERSION = 1
HEADER = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": "tasks"}
FILE_NAME = "results.json"

Kind = Literal["mean", "perplexity", "bits_per_byte", "other"]
"""The kinds of metrics, by their aggregation over items.

`mean` averages one number per item. The next two sum pairs `[log-likelihood, weight]`: `perplexity` is
exp(-sum of log-likelihoods / sum of weights), and `bits_per_byte` is -sum of log-likelihoods / sum of bytes / ln 2.
`other` is an aggregation by the task's own code.
"""


@dataclass(frozen=True)
class Metric:
    """A metric of a task, with its 95 % interval.

    Attributes:
        low, high: the interval; None if the metric is not a mean over items, and so has no interval here.
        method: the method of the interval, such as `Wilson` or `bootstrap-t over documents`.
        subset: the subset of items: None for all of them, or `clean` for those that are not in the training text.
    """

    name: str
    value: Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]  # JSON has no infinity
    low: float | None
    high: float | None
    method: str
    kind: Kind
    higher_is_better: bool
    items: int
    subset: str | None = None


@dataclass(frozen=True)
class Sample:
    """One item of a task.

    Attributes:
        item: the item's index in the file or split, from 0.
        hash: the item's sha256, by which two evaluations are paired.
        cluster: the item's cluster; items of one cluster, such as Winogrande's twins and copies, are not independent.
        scores: the item's score by metric: a number, or `[log-likelihood, weight]`.
        log_likelihoods: the log-likelihood of each choice, in nats.
    """

    item: int
    hash: str
    cluster: int
    scores: dict[str, float | tuple[float, float]]
    log_likelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """The result on one task, or on a group of tasks with the harness's score of the group.

    Attributes:
        version: the harness's version of the task.
        source: the source of the items: `path` and `sha256` of a file, or `dataset` and `split` on the Hub; empty for a
            group.
        context_length: the context length in tokens; of a group the longest of its tasks.
        num_fewshot: the number of few-shot examples; of a group the most of its tasks.
        metrics: the metrics of the task or group.
        samples: the scored items; empty for a group, whose items are those of its tasks.
        n_cut: the number of requests that exceeded the context length, so that their beginning was cut off.
        n_copies: the number of items that are copies of an earlier one, and in one cluster with it.
        gen_kwargs: the settings of generation that the user overrode; None if the task generates no text.
        members: the tasks of a group, at any depth; empty for a task.
        by_size: the metrics of a group that weight tasks by their number of items; others weight all tasks equally.
    """

    task: str
    version: str
    source: dict[str, Any]
    context_length: int
    num_fewshot: int
    metrics: tuple[Metric, ...]
    samples: tuple[Sample, ...]
    n_cut: int = 0
    n_copies: int = 0
    gen_kwargs: dict[str, Any] | None = None
    members: tuple[str, ...] = ()
    by_size: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskResults:
    """The results of an evaluation on tasks.

    Attributes:
        checkpoint: the checkpoint's `name`, `path`, `sha256`, `n_params`, `step`, `tokens` and `model` (configuration).
        protocol: the settings that shape the scores, such as `dtype`, `limit` and seeds.
        versions: the versions of the packages involved.
        tasks: the results of groups and tasks.
    """

    checkpoint: dict[str, Any]
    protocol: dict[str, Any]
    versions: dict[str, str]
    tasks: tuple[TaskResult, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.protocol.get("seeds") or {}, dict):
            raise ValueError("protocol.seeds is not a seed for each library")

    @property
    def fewshot_seed(self) -> object:
        """The seed of the few-shot examples."""
        return (self.protocol.get("seeds") or {}).get("fewshot")


def grouped_by(tasks: Sequence[TaskResult]) -> set[str]:
    """Return the names of tasks and groups that belong to another group among them."""
    groups = [(task.task, set(task.members)) for task in tasks if task.members]
    within = {name for name, members in groups if any(members < others for _, others in groups)}
    return within.union(*(members for _, members in groups))


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of this code, which may be an uninstalled checkout, and of other packages."""
    return {"gptstar": __version__} | {name: version(name) for name in packages}


def from_nats(nats: float, kind: Kind) -> float:
    """Convert a mean loss in nats to a perplexity or bits per byte."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats) if kind == "perplexity" else nats / math.log(2))


def to_json(figures: Any) -> str:
    """Convert figures to JSON; NaN and infinities become null, because JSON lacks them."""
    finite = json.loads(json.dumps(figures), parse_constant=lambda _: None)
    return json.dumps(finite, indent=1) + "\n"


def write_tasks(results: TaskResults, folder: Path) -> Path:
    """Write `results.json` into a folder atomically.

    Raises:
        OSError: the file can't be written; an older one remains.
    """
    path = folder / FILE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(HEADER | asdict(results)))
    return path


def write_study(folder: Path, kind: str, config: Any, **found: Any) -> None:
    """Write `results.json` of a study into its folder atomically; `config` is the study's dataclass.

    Raises:
        OSError: the file can't be written; an older one remains.
    """
    about = {"kind": kind, "protocol": asdict(config), "versions": versions_of("torch", "numpy", "tokenizers")}
    write_text(folder / FILE_NAME, to_json(HEADER | about | found))


def read_tasks(path: Path) -> TaskResults:
    """Read the results of an evaluation on tasks: a `results.json`, or the folder that holds it.

    Raises:
        ConfigError: the file is missing, damaged, or of another kind; the message names it.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return parse_tasks(read_json(file))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} does not hold results of evaluate.py evaluation.tasks=[…]: {problem(error)}"
        ) from error


def parse_tasks(tree: Any) -> TaskResults:
    """Build results from the tree of a `results.json`.

    Raises:
        ValueError, AttributeError: the tree is damaged, or of another kind.
    """
    header = {key: tree.get(key) for key in HEADER}
    if header != HEADER:
        raise ValueError(f"its header is {header} instead of {HEADER}")
    return TypeAdapter(TaskResults).validate_python(tree)


def problem(error: Exception) -> str:
    """Describe an error in a file in one line; if pydantic found several errors, describe the first."""
    if isinstance(error, KeyError):
        return f"no {in_one_line(error)}"
    if not isinstance(error, ValidationError):
        return in_one_line(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
