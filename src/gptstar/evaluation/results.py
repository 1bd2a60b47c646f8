"""The results of an evaluation: `results.json`, written and read."""

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
"""How a metric follows from its items.

`mean` of one number each; `perplexity` exp(-sum of log-likelihoods / sum of weights) and `bits_per_byte`
-sum of log-likelihoods / sum of bytes / ln 2, of two numbers each, `[log-likelihood, weight]`; `other` is what the
task's own code makes of them.
"""


@dataclass(frozen=True)
class Metric:
    """One figure of a task, with its 95 % interval.

    Attributes:
        low, high: None where the metric is not a mean over items and so has no interval here.
        method: of the interval, such as `Wilson` or `bootstrap-t over documents`.
        subset: of the items it is over: None for all of them, or `clean`, those that training never saw.
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
        item: its number in the file or split, from 0.
        hash: sha256 of the item, by which two evaluations are paired.
        cluster: items with the same number are not independent, such as Winogrande's twins and copies.
        scores: by metric: a number, or `[log-likelihood, weight]`.
        log_likelihoods: of each choice, in nats.
    """

    item: int
    hash: str
    cluster: int
    scores: dict[str, float | tuple[float, float]]
    log_likelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """One task, or a group of tasks with the harness's score of the group.

    Attributes:
        version: the harness's, of the task.
        source: of the items: `path` and `sha256` of a file, or the Hub's `dataset` and `split`; empty for a group.
        context_length: in tokens, of this task; of a group the longest of its tasks.
        num_fewshot: examples before each item; of a group the most of its tasks.
        samples: empty for a group, whose items are those of its tasks.
        n_cut: requests that were longer, and lost their beginnings.
        n_copies: items that are copies of an earlier one, and of one cluster with it.
        gen_kwargs: what was given over the task's own way of writing; None where the task writes no texts.
        members: the tasks of a group, at any depth; empty for a task.
        by_size: the metrics of a group that weigh each task by its items; the others weigh all tasks alike.
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
    """All of an evaluation on tasks.

    Attributes:
        checkpoint: `name`, `path`, `sha256`, `n_params`, `step`, `tokens`, and `model`, its configuration.
        protocol: `dtype`, `limit`, seeds, and what else shapes the scores.
        versions: of the packages that took part.
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
        """The seed by which few-shot examples were drawn."""
        return (self.protocol.get("seeds") or {}).get("fewshot")


def grouped_by(tasks: Sequence[TaskResult]) -> set[str]:
    """Names of tasks and groups that lie within another group among them."""
    groups = [(task.task, set(task.members)) for task in tasks if task.members]
    within = {name for name, members in groups if any(members < others for _, others in groups)}
    return within.union(*(members for _, members in groups))


def versions_of(*packages: str) -> dict[str, str]:
    """The versions of this code, which may be a checkout that is not installed, and of other packages."""
    return {"gptstar": __version__} | {name: version(name) for name in packages}


def from_nats(nats: float, kind: Kind) -> float:
    """A mean loss in nats as a metric shows it: a perplexity, or bits per byte."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats) if kind == "perplexity" else nats / math.log(2))


def to_json(figures: Any) -> str:
    """Figures as text; NaN and infinities become null, as JSON lacks them."""
    finite = json.loads(json.dumps(figures), parse_constant=lambda _: None)
    return json.dumps(finite, indent=1) + "\n"


def write_tasks(results: TaskResults, folder: Path) -> Path:
    """Write `results.json` into a folder, whole or not at all.

    Raises:
        OSError: it can't be written; an older one stands.
    """
    path = folder / FILE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(HEADER | asdict(results)))
    return path


def write_study(folder: Path, kind: str, config: Any, **found: Any) -> None:
    """Write `results.json` of a study into its folder, whole or not at all; `config` is the study's dataclass.

    Raises:
        OSError: it can't be written; an older one stands.
    """
    about = {"kind": kind, "protocol": asdict(config), "versions": versions_of("torch", "numpy", "tokenizers")}
    write_text(folder / FILE_NAME, to_json(HEADER | about | found))


def read_tasks(path: Path) -> TaskResults:
    """Read the results of an evaluation on tasks: a `results.json`, or the folder that holds it.

    Raises:
        ConfigError: missing, damaged, or of another kind; names the file.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return parse_tasks(read_json(file))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} is not results of tasks, as evaluate.py evaluation.tasks=[…] writes them: {problem(error)}"
        ) from error


def parse_tasks(tree: Any) -> TaskResults:
    """Make results of what a `results.json` says. Raises ValueError or AttributeError if it is damaged or other."""
    header = {key: tree.get(key) for key in HEADER}
    if header != HEADER:
        raise ValueError(f"its header is {header} instead of {HEADER}")
    return TypeAdapter(TaskResults).validate_python(tree)


def problem(error: Exception) -> str:
    """What is wrong with a file, in one line: where pydantic found several things wrong, the first."""
    if isinstance(error, KeyError):
        return f"no {in_one_line(error)}"
    if not isinstance(error, ValidationError):
        return in_one_line(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
