"""Values and types of the configuration in the words of the reference."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from generator.tables import code


def plain(value: Any) -> str:
    """Write a value as a command line takes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "[" + ", ".join(plain(each).strip("`") for each in value) + "]"
        case dict():
            return "{" + ", ".join(f"{key}: {plain(each)}" for key, each in value.items()) + "}"
        case float():
            return f"{value:g}"
        case int() if value >= 100_000:
            return f"{value:,}".replace(",", "_")
        case "":
            return "`''`"
        case str():
            return code(value)
    return str(value)


def in_words(hint: Any, marks: Sequence[Any] = ()) -> str:
    """Write a type and its range as a reader of the table does."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return in_words(inner, (*more, *marks))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        parts = sorted(arguments, key=lambda each: each is NoneType)
        return " or ".join(dict.fromkeys(in_words(each, marks) for each in parts))
    if origin is Literal:
        return ", ".join(code(str(each)) for each in arguments)
    if origin is tuple:
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return "mapping"
    if hint in (int, float):
        return _number(hint, marks)
    return {bool: "`true`, `false`", str: "text", Path: "path", date: "date", NoneType: "null"}.get(hint, "any")


def _number(hint: type, marks: Sequence[Any]) -> str:
    word = "integer" if hint is int else "number"
    bounds = []
    for mark in marks:
        match mark:
            case Ge(least):
                bounds.append(f"≥ {least}")
            case Gt(least):
                bounds.append(f"> {least}")
            case Le(most):
                bounds.append(f"≤ {most}")
            case Lt(most) if most != float("inf"):
                bounds.append(f"< 2^{most.bit_length() - 1}" if isinstance(most, int) and most > 2**20 else f"< {most}")
    return " ".join([word, ", ".join(sorted(bounds, key=lambda each: each[0] in "<≤"))]).strip()
