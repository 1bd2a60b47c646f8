"""Runs that were written back from a table of a study: their results without their checkpoints."""

import re
from pathlib import Path

from gptstar.errors import ConfigError, in_one_line
from gptstar.files import read_json, write_json
from gptstar.training.settings import reopening
from gptstar.training.status import RESTORED

LOCATIONS = ("data.files", "data.shards", "data.tokenizer")
"""Keys that say where a text is; whether it is the same, its fingerprint tells."""


HOME = "~"
"""What stands in a table for the home of whoever trained a run."""


def without_own_paths(text: str) -> str:
    """Take the paths of one machine out of a text: those in the working directory and in the home directory."""
    for path, stands in ((Path.cwd(), "."), (Path.home(), HOME)):
        text = replace_path(text, path, stands)
    return text


def replace_path(text: str, path: Path, stands: str) -> str:
    """Replace a path where it begins another or stands by itself; not the root's, which begins all."""
    return re.sub(rf"{re.escape(str(path))}(?![\w.-])", stands, text) if len(path.parts) > 1 else text


def mark_restored(folder: Path, table: Path) -> None:
    """Note in a run directory which table it was written back from.

    Raises:
        OSError: it can't be written.
    """
    write_json(folder / RESTORED, {"table": str(table)})


def restored_from(folder: Path) -> str | None:
    """Return the table that a run directory was written back from; None if it was not."""
    try:
        return str(read_json(folder / RESTORED)["table"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return "a table"


def check_restored(folder: Path, config_yaml: str, fingerprint: str) -> None:
    """Refuse to take restored results for those of another configuration or of another text.

    Args:
        fingerprint: of the text that the configuration names.

    Raises:
        ConfigError: they are of another; names the run, the table, and the first of what differs.
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
