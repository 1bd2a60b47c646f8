"""Annotations of configuration fields: the range of a value, and its role in a run."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from gptstar.errors import ConfigError


def _number(value: Any) -> Any:
    """Refuse true and false, which Python and pydantic accept as 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""A list of words; a single word is accepted as a list of one."""

Count = Annotated[Whole, Ge(1)]
NotNegative = Annotated[Whole, Ge(0)]
Positive = Annotated[Real, Lt(math.inf), Gt(0)]
Share = Annotated[Real, Ge(0), Le(1)]
BelowOne = Annotated[Real, Ge(0), Lt(1)]
Within = Annotated[Real, Gt(0), Lt(1)]
AtLeastZero = Annotated[Real, Lt(math.inf), Ge(0)]
Seed = Annotated[Whole, Ge(0), Lt(2**63)]
Seed32 = Annotated[Whole, Ge(0), Lt(2**32)]


class Role(Enum):
    """The role of a value in a run. A field without a role inherits that of its group."""

    RESULT = "shapes the result, and stays the same to the end of a run"
    CHANGEABLE = "shapes the result, and may change when a run resumes"
    MEASURE = "says what is measured"
    SOURCE = "says where something is that a hash identifies"
    MACHINE = "says where and how a run computes"
    RECORD = "says what is kept of a run, and where"

    @property
    def is_fixed(self) -> bool:
        """Whether a run can resume only with the same value."""
        return self is Role.RESULT

    @property
    def reopens(self) -> bool:
        """Whether another value requires a finished run to be continued."""
        return self in (Role.RESULT, Role.CHANGEABLE, Role.MEASURE, Role.SOURCE)

    @property
    def is_compared(self) -> bool:
        """Whether runs with different values are different arms of a comparison."""
        return self in (Role.RESULT, Role.CHANGEABLE, Role.MACHINE)


@dataclass(frozen=True)
class Before:
    """The value assumed for checkpoints and runs that are older than the field.

    It is separate from the default, which may change without changing the meaning of an old checkpoint.
    """

    value: Any


class Shown(Enum):
    """Whether a setting is shown even if it is the same in all runs."""

    ALWAYS = "in reports and model cards"


@functools.cache  # each construction of an object calls this
def annotations(cls: type) -> tuple[tuple[str, Any, tuple[Any, ...]], ...]:
    """Return each field of a dataclass: its name, its type without annotations, and the annotations."""
    hints, described = get_type_hints(cls, include_extras=True), []
    for field in fields(cls):
        hint, marks = hints[field.name], ()
        if get_origin(hint) is Annotated:
            hint, *rest = get_args(hint)
            marks = tuple(rest)
        described.append((field.name, hint, marks))
    return tuple(described)


def check_ranges(config: Any, prefix: str) -> None:
    """Check a configuration's fields against the ranges in their types.

    Args:
        config: the configuration object.
        prefix: the prefix of the fields' keys, such as `optimizer.`.

    Raises:
        ConfigError: a value is out of its range; the message names key, value and range.
    """
    cls: type = type(config)
    for name, hint, marks in annotations(cls):
        value = getattr(config, name)
        if isinstance(value, int | float):
            for bound in (*_bounds(hint), *_bounds_in(marks)):
                if not _within(value, bound):
                    raise ConfigError(f"{prefix}{name}={value}{_outside(bound)}")


def in_words(error: Mapping[str, Any]) -> str:
    """Describe an error of pydantic; that of a range is described as in `check_ranges`."""
    for kind, (mark, name) in PYDANTIC.items():
        if error["type"] == kind:
            return _outside(mark(error["ctx"][name]))
    return f": {error['msg'][0].lower()}{error['msg'][1:]}"


PYDANTIC: dict[str, tuple[Callable[[Any], BaseMetadata], str]] = {
    "greater_than_equal": (Ge, "ge"),
    "greater_than": (Gt, "gt"),
    "less_than_equal": (Le, "le"),
    "less_than": (Lt, "lt"),
}
"""The bounds that pydantic's errors refer to, by the type of error."""


def _bounds(hint: Any) -> Iterator[BaseMetadata]:
    """Yield the bounds within a type, such as those of `Count | None`."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        yield from _bounds(inner)
        yield from _bounds_in(tuple(marks))
    else:
        for part in get_args(hint):
            if get_origin(part) is Annotated:
                yield from _bounds(part)


def _bounds_in(marks: tuple[Any, ...]) -> Iterator[BaseMetadata]:
    yield from (mark for mark in marks if isinstance(mark, Ge | Gt | Le | Lt))


def _within(value: Any, bound: BaseMetadata) -> bool:
    match bound:
        case Ge(ge):
            return bool(value >= ge)
        case Gt(gt):
            return bool(value > gt)
        case Le(le):
            return bool(value <= le)
        case Lt(lt):
            return bool(value < lt)
    return True


def _outside(bound: BaseMetadata) -> str:
    """Describe how a value violates a bound."""
    match bound:
        case Ge(ge):
            return f" is below {ge}" if ge else " is not 0 or above"
        case Gt(gt):
            return f" is not above {gt}"
        case Le(le):
            return f" is above {le}"
        case Lt(lt):
            return " is not finite" if lt == math.inf else f" is not below {lt}"
    raise AssertionError(bound)
