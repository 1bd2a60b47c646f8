"""The keys of a configuration and their declarations, read from the configuration classes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any, Union, get_args, get_origin

from gptstar.choices import Choices
from gptstar.fields import Before, Role, Shown, annotations


class Inline(Enum):
    """The mark of a group whose keys are at the level of the group itself, not below it."""

    KEYS = "in the group above"


class Unstated(Enum):
    """The absence of a value, for fields where None is a value."""

    VALUE = "not stated"


UNSTATED = Unstated.VALUE


@dataclass(frozen=True)
class Declared:
    """The declaration of a key.

    Attributes:
        role: the role of the key in a run.
        before: the value assumed for older checkpoints and runs; UNSTATED if the declaration has none.
        is_shown: whether reports show the key even if its value is the same in all runs.
        is_group: whether other keys are below this one.
    """

    role: Role
    before: Any = UNSTATED
    is_shown: bool = False
    is_group: bool = False


def declared(cls: type, prefix: str = "", role: Role = Role.RECORD) -> dict[str, Declared]:
    """Return every dotted key of a configuration class, and its groups; `*` stands for a name that the user gives.

    Args:
        cls: the configuration class.
        prefix: the prefix of its keys.
        role: the role of fields that don't declare one.
    """
    keys: dict[str, Declared] = {}
    for name, hint, marks in annotations(cls):
        own = next((mark for mark in marks if isinstance(mark, Role)), role)
        before = next((mark.value for mark in marks if isinstance(mark, Before)), UNSTATED)
        leaf = Declared(own, before, is_shown=Shown.ALWAYS in marks)
        choices = next((mark for mark in marks if isinstance(mark, Choices)), None)
        key, inner, below = f"{prefix}{name}", groups_of(hint), f"{prefix}{name}."
        if choices is not None and choices.is_word:
            keys |= {key: leaf, f"{below}*": leaf}
        elif choices is not None:
            tag = Declared(own, choices.before or UNSTATED, is_shown=True)
            keys |= {key: Declared(own, is_group=True), f"{below}{choices.tag}": tag}
            inner = choices.classes()
        elif get_origin(hint) is dict and inner:
            keys, below = keys | {key: Declared(own, is_group=True)}, f"{below}*."
        elif get_origin(hint) is dict:
            keys |= {key: leaf, f"{below}*": leaf}
        elif Inline.KEYS in marks:
            below = prefix
        elif inner:
            keys[key] = Declared(own, is_group=True)
        else:
            keys[key] = leaf
        for group in inner:
            keys |= {each: it for each, it in declared(group, below, own).items() if each not in keys}
    return keys


def groups_of(hint: Any) -> list[type]:
    """Return the configuration classes within a type."""
    if get_origin(hint) is dict:
        hint = get_args(hint)[1]
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [option for option in options if isinstance(option, type) and is_dataclass(option)]


def valid_keys(cls: type) -> list[str]:
    """Return every dotted key that a user can give."""
    return [key for key, about in declared(cls).items() if not about.is_group]


def about(key: str, known: Mapping[str, Declared]) -> Declared:
    """Return the declaration of a key, or of the nearest declared group around it.

    A key outside all groups belongs to Hydra or to the record.
    """
    while key:
        if (declaration := known.get(key)) is not None:
            return declaration
        key = key.rpartition(".")[0]
    return Declared(Role.RECORD)


def is_valid(key: str, valid: Iterable[str]) -> bool:
    """Whether a dotted key belongs to a configuration."""
    return any(key == each or ("*" in each and fnmatchcase(key, each)) for each in valid)


def unknown_key(key: str, valid: Iterable[str]) -> str:
    """Return the message for an unknown key, with the nearest valid one."""
    valid = list(valid)
    if is_valid(key, valid):
        return f"{key} is a key that is not set so far: give it as +{key}=VALUE"
    near = get_close_matches(key, valid, 1, cutoff=0.5)
    same_leaf = [other for other in valid if other.rpartition(".")[2] == key.rpartition(".")[2]]
    suggestion = " or ".join(same_leaf or near)
    return f"{key} is not a key of the configuration" + (f": did you mean {suggestion}?" if suggestion else "")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to dotted keys: `{"model": {"n_heads": 8}}` → `{"model.n_heads": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def nested(cls: type, tree: dict[str, Any]) -> dict[str, Any]:
    """Move the keys of each inline group below the group, to match the structure of the classes."""
    moved = dict(tree)
    for name, hint, marks in annotations(cls):
        if Inline.KEYS in marks:
            own = {key for group in groups_of(hint) for key, _, _ in annotations(group)}
            moved[name] = {key: moved.pop(key) for key in list(moved) if key in own}
    return moved
