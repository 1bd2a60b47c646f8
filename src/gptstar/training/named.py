"""Construction of Lightning's callbacks and loggers, or the user's own, from a configuration."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from gptstar.choices import import_user_module
from gptstar.errors import ConfigError, in_one_line

Part = TypeVar("Part")


def check_specs(key: str, specs: Any) -> None:
    """Check that a value is a list of mappings, each with the class to `use`.

    Raises:
        ConfigError: it is not; the message shows the right form.
    """
    example = f'{key}=[{{use: "PACKAGE.MODULE:CLASS", ARGUMENT: VALUE}}]'
    if not isinstance(specs, list | tuple):
        raise ConfigError(f"{key}={specs} is not a list: give {example}")
    for spec in specs:
        use = spec.get("use") if isinstance(spec, Mapping) else None
        if not isinstance(use, str) or not re.fullmatch(r"\w+(\.\w+)*:\w+", use):
            raise ConfigError(f"{key}: {spec} does not name a class: give {example}")


def build_named(key: str, spec: Mapping[str, Any], kind: type[Part], **defaults: Any) -> Part:
    """Build the object that `{use: "package.module:Class", argument: value}` describes.

    Args:
        key: the configuration's key, for error messages.
        spec: the mapping with the class to `use` and its arguments.
        kind: the required base class.
        defaults: arguments for classes that accept them; those in the spec win.

    Raises:
        ConfigError: the class can't be imported, has another base, or rejects its arguments; the message names it.
    """
    module, _, name = spec["use"].partition(":")
    arguments = {str(argument): value for argument, value in spec.items() if argument != "use"}
    try:
        cls = getattr(import_user_module(module), name)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"{key}: {spec['use']} can't be imported: {in_one_line(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ConfigError(f"{key}: {spec['use']} is not a {kind.__name__} of Lightning's")
    try:
        taken = inspect.signature(cls).parameters
        return cls(**{name: value for name, value in defaults.items() if name in taken} | arguments)
    except Exception as error:
        raise ConfigError(f"{key}: {spec['use']} rejects its arguments: {in_one_line(error)}") from error
