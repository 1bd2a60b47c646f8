"""Runs restored from the table of a study: they have their results, but no checkpoints."""

import re
from pathlib import Path

from gptstar.errors import ConfigError, in_one_line
from gptstar.files import read_json, write_json
from gptstar.training.settings import reopening
from gptstar.training.status import RESTORED

LOCATIONS = ("data.files", "data.shards", "data.tokenizer")
"""Keys with the location of the text. They may differ: its fingerprint tells whether the text is the same."""


HOME = "~"
"""The placeholder in a table for the home directory of the person who trained a run."""


def without_own_paths(text: str) -> str:
    """Replace paths inside this machine's working directory and home directory by placeholders."""
    for path, stands in ((Path.cwd(), "."), (Path.home(), HOME)):
        text = replace_path(text, path, stands)
    return text


def replace_path(text: str, path: Path, stands: str) -> str:
    """Replace a path, alone or as the beginning of another path. The root is never replaced, because it begins all."""
    return re.sub(rf"{re.escape(str(path))}(?![\w.-])", stands, text) if len(path.parts) > 1 else text


def mark_restored(folder: Path, table: Path) -> None:
    """Record in a run directory from which table it was restored.

    Raises:
        OSError: the file can't be written.
    """
    write_json(folder / RESTORED, {"table": str(table)})


def restored_from(folder: Path) -> str | None:
    """Return the table from which a run directory was restored; None if the run was trained here."""
    try:
        return str(read_json(folder / RESTORED)["table"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return "a table"


def check_restored(folder: Path, config_yaml: str, fingerprint: str) -> None:
    """Check that restored results belong to this configuration and to this text.

    Args:
        folder: the restored run directory.
        config_yaml: the configuration of the run to be done.
        fingerprint: the fingerprint of the text that the configuration names.

    Raises:
        ConfigError: they belong to another; the message names the run, the table, and the first differences.
    """
    try:
        differing = [each for each in reopening(folder, without_own_paths(config_yaml)) if each[0] not in LOCATIONS]
        known = str(read_json(folder / "versions.json")["data"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{folder} is damaged ({in_one_line(error)}): remove it, and it is restored again") from error
    said = [f"{key} (there {there}, here {here})" for key, there, here in differing]
    if known != fingerprint:
        said.append(f"the text (its fingerprint is {known[:12]} there, {fingerprint[:12]} here)")
    if said:
        raise ConfigError(
            f"{folder.name} in {restored_from(folder)} is a run of other settings: {', '.join(said[:3])}"
            f"{' and more' if len(said) > 3 else ''}; give those settings, or another output and table"
        )
