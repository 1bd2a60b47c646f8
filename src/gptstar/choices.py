"""Choices by name: a registry that maps the names in a configuration to classes.

A name is looked up among the registered classes, which are built in or come from the user's plugins, and then among
the entry points of installed packages. A checkpoint or a run directory can't cause an import.
"""

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import core_schema

from gptstar.errors import ConfigError, UnknownChoice, in_one_line, with_type
from gptstar.fields import in_words

Kind = TypeVar("Kind")


class Choices(Generic[Kind]):
    """A registry of the classes of one kind, such as optimizers, by name.

    As an annotation, such as `Annotated[Optimizer, OPTIMIZERS]`, it also converts a configuration to an object.

    Args:
        key: the key of the choice in a configuration, such as `model.positions`.
        tag: the key that holds the name of the class, next to the class's own keys.
        before: the name assumed for configurations that are older than the choice.
        is_word: whether the choice is written as a bare name, or as a mapping if the class has its own keys.
        never_dropped: keys of other classes that are refused if they have a value. All other keys of other classes are
            dropped, because an experiment may set them for the class that it chooses.
    """

    def __init__(
        self,
        key: str,
        *,
        tag: str,
        before: str | None = None,
        is_word: bool = False,
        never_dropped: tuple[str, ...] = (),
    ) -> None:
        self.key, self.tag, self.before, self.is_word, self._never_dropped = key, tag, before, is_word, never_dropped
        self._classes: dict[str, type[Kind]] = {}

    def register(self, name: str) -> Callable[[type[Kind]], type[Kind]]:
        """Return a decorator that registers a class under a name; a class with its own keys must be a dataclass.

        Raises:
            ConfigError: another class has the name.
        """

        def registered(cls: type[Kind]) -> type[Kind]:
            there = self._classes.get(name)
            if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ConfigError(
                    f"{self.key}={name} is {there.__module__}.{there.__qualname__} already: "
                    f"register {cls.__module__}.{cls.__qualname__} under another name"
                )
            self._classes[name] = cls
            return cls

        return registered

    def names(self) -> list[str]:
        """Return the registered names, and those of installed packages."""
        return list(dict.fromkeys([*self._classes, *(point.name for point in self._entry_points())]))

    def classes(self) -> list[type[Kind]]:
        """Return the registered classes."""
        return list(self._classes.values())

    def find(self, name: str, plugin: str | None = None) -> type[Kind]:
        """Return the class with the given name.

        Args:
            name: the name of the class.
            plugin: the user's module that defined the class when the name was recorded, for the error message.

        Raises:
            ConfigError: the name is unknown; the message lists known names, and says how to add one.
        """
        if name not in self._classes:
            for point in self._entry_points():
                if point.name == name:
                    _imported(point.module, f"the entry point {name} of an installed package")
        if name not in self._classes:
            near = get_close_matches(name, self.names(), 1)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names()) or 'none so far'}."
            module = plugin or "YOUR.MODULE"
            key = self.key if self.is_word else f"{self.key}.{self.tag}"
            raise UnknownChoice(
                f"{key}={name} is not known: {known} If it is your own, give a command --plugins {module}, or to "
                f"train and evaluate add plugins=[{module}]"
            )
        return self._classes[name]

    def name_of(self, choice: Kind) -> str:
        """Return the name of an object's class."""
        return next(name for name, cls in self._classes.items() if cls is type(choice))

    def plugin_of(self, choice: Kind | type[Kind]) -> str | None:
        """Return the user's module that defines a class, or an object's class; None for built-in classes."""
        module = (choice if isinstance(choice, type) else type(choice)).__module__
        return None if module.partition(".")[0] == "gptstar" else module

    def parse(self, value: Any) -> Kind:
        """Build an object from a name, or from a mapping of keys with the name under `tag`.

        Raises:
            ConfigError: the name is unknown, or a key or value does not fit the class.
        """
        if not isinstance(value, str | dict):
            raise ConfigError(f"{self.key}={value} is not a name: choose one of {', '.join(self.names())}")
        tree: dict[str, Any] = {self.tag: value} if isinstance(value, str) else dict(value)
        name, plugin = tree.pop(self.tag, None), tree.pop("plugin", None)
        if not isinstance(name, str):
            raise ConfigError(f"{self.key}.{self.tag}={name} is not a name: choose one of {', '.join(self.names())}")
        cls = self.find(name, plugin)
        return parse_fields(cls, self._own_keys(name, cls, tree), self.key)

    def describe(self, choice: Kind) -> dict[str, Any]:
        """Return a mapping that `parse` accepts: the name, every field, and the module of a user's class."""
        values = {field.name: getattr(choice, field.name) for field in fields(choice)}  # type: ignore[arg-type]
        plugin = self.plugin_of(choice)
        return {self.tag: self.name_of(choice)} | values | ({"plugin": plugin} if plugin else {})

    def _own_keys(self, name: str, cls: type[Kind], tree: dict[str, Any]) -> dict[str, Any]:
        own = _field_names(cls)
        for key, value in tree.items():
            if key in own:
                continue
            others = [other for other in self._classes if key in _field_names(self._classes[other])]
            if not others:
                near = get_close_matches(key, own, 1, cutoff=0.5)
                hint = f": did you mean {self.key}.{near[0]}?" if near else ""
                raise ConfigError(f"{self.key}.{key} is not a key of {self.key}={name}{hint}")
            if value is not None and key in self._never_dropped:
                raise ConfigError(
                    f"{self.key}.{key}={value} is a key of {self.key}={' or '.join(others)}, not of {self.key}={name}: "
                    f"leave it out, or give {self.key}.{key}=null where an experiment sets it"
                )
        return {key: value for key, value in tree.items() if key in own}

    def _entry_points(self) -> Any:
        return entry_points(group=f"gptstar.{self.key.rpartition('.')[2]}")

    def __get_pydantic_core_schema__(self, source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        optional = type(None) in get_args(source)

        def validated(value: Any) -> Any:
            chosen = isinstance(value, tuple(self._classes.values())) or (optional and value is None)
            return value if chosen else self.parse(value)

        return core_schema.no_info_plain_validator_function(validated)


def parse_fields(cls: type[Kind], tree: dict[str, Any], key: str) -> Kind:
    """Build a dataclass from a mapping of its fields, and check their types.

    Args:
        cls: the dataclass.
        tree: the fields by name.
        key: the key of the mapping in the configuration.

    Raises:
        ConfigError: a key is unknown, or a value is missing or has another type; the message names the key.
    """
    if unknown := next((name for name in tree if name not in _field_names(cls)), None):
        raise ConfigError(f"{key}.{in_one_line(unknown)} is not a key of this version's {key}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in tree and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{key}.{field.name} has no value: give {key}.{field.name}=VALUE")
    try:
        return TypeAdapter(cls).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *(str(part) for part in first["loc"] if part in tree)])
        raise ConfigError(f"{where}={in_one_line(first['input'])}{in_words(first)}") from error


def import_plugins(modules: tuple[str, ...]) -> None:
    """Import the modules that the user named, so that they register their classes.

    Raises:
        ConfigError: a module can't be imported; the message says why.
    """
    for module in modules:
        _imported(module, f"the plugin {module}")


def import_user_module(module: str) -> ModuleType:
    """Import a module from Python's path or from the working directory."""
    if "" not in sys.path:
        sys.path.append("")  # the path has a script's folder, but not the working directory
    return import_module(module)


def _imported(module: str, origin: str) -> None:
    try:
        import_user_module(module)
    except ModuleNotFoundError as error:
        hint = f"looked in {Path.cwd()}: name a module that is there or is installed"
        if module.endswith(".py"):
            hint = f"give its name without .py: {module.removesuffix('.py')}"
        elif near := get_close_matches(module, [path.stem for path in Path().glob("*.py")], 1):
            hint = f"did you mean {near[0]}?"
        raise ConfigError(f"{origin} can't be imported: {in_one_line(error)}; {hint}") from error
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"{origin} can't be imported: {with_type(error)}") from error


def _field_names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}
