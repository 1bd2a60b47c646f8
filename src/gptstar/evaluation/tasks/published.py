"""Published results to set beside ours: `published.json`, with where each figure is from and what it measures."""

import functools
from dataclasses import dataclass
from importlib.resources import files

from pydantic import TypeAdapter


@dataclass(frozen=True)
class PublishedTask:
    """A task as it was published on, on all items of the split, and what its dataset's own page says of it."""

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
        value: an accuracy is a share, not a percentage.
        context_length: in tokens; None where the source does not say.
        measures: what it really is, where that is another metric than ours, or `unknown`.
        notes: what a reader has to know before comparing.
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
    """A model's published figures, with notes on the model and one on its training tokens."""

    model: str
    training_tokens: int
    tokens_source: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    tokens_note: str | None = None
    tokens_confirmed: bool = True

    def figure(self, task: str, metric: str) -> Figure | None:
        """The figure that stands beside ours, if there is one."""
        return next((each for each in self.figures if (each.task, each.metric) == (task, metric)), None)


@dataclass(frozen=True)
class Published:
    """All published results; figures name their sources, which are Markdown links, and notes by the keys here."""

    tasks: dict[str, PublishedTask]
    sources: dict[str, str]
    notes: dict[str, str]
    rows: tuple[Row, ...]


@functools.cache
def published_rows() -> Published:
    """The published results that the package carries."""
    content = files("gptstar.evaluation.tasks").joinpath("published.json").read_bytes()
    return TypeAdapter(Published).validate_json(content)


def licence_of(task: str) -> str | None:
    """The licence of a task's dataset, if its page was read."""
    known = published_rows().tasks.get(task)
    return known.licence if known else None
