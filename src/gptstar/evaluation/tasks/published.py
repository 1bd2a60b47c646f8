"""Published results for comparison: `published.json`, with the source of each figure and what it measures."""

import functools
from dataclasses import dataclass
from importlib.resources import files

from pydantic import TypeAdapter


@dataclass(frozen=True)
class PublishedTask:
    """A task with published results: its split and number of items, and facts from its dataset's page."""

    title: str
    items: int
    split: str
    licence: str
    homepage: str
    citation: str


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        value: the value; an accuracy is a share, not a percentage.
        context_length: the context length in tokens; None if the source does not state it.
        measures: the metric, if it differs from ours, or `unknown`.
        notes: caveats of the comparison.
    """

    task: str
    metric: str
    value: float
    context_length: int | None
    source: str
    measures: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A model's published figures, with notes on the model and on its training tokens."""

    model: str
    training_tokens: int
    tokens_source: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    tokens_note: str | None = None
    tokens_confirmed: bool = True

    def figure(self, task: str, metric: str) -> Figure | None:
        """Return the figure to compare with ours; None if there is none."""
        return next((each for each in self.figures if (each.task, each.metric) == (task, metric)), None)


@dataclass(frozen=True)
class Published:
    """All published results. Figures refer to `sources` (Markdown links) and `notes` by their keys."""

    tasks: dict[str, PublishedTask]
    sources: dict[str, str]
    notes: dict[str, str]
    rows: tuple[Row, ...]


@functools.cache
def published_rows() -> Published:
    """Load the published results that the package contains."""
    content = files("gptstar.evaluation.tasks").joinpath("published.json").read_bytes()
    return TypeAdapter(Published).validate_json(content)


def licence_of(task: str) -> str | None:
    """Return the licence of a task's dataset; None if it is unknown."""
    known = published_rows().tasks.get(task)
    return known.licence if known else None
