"""Runs restored from the table of a study: they have their results, but no checkpoints."""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gptstar.checkpoint.kept import RESTORED, restored_from
from gptstar.errors import ConfigError, in_one_line
from gptstar.files import read_json, read_text, write_json
from gptstar.training.settings import reopening
from gptstar.training.status import parse_config

LOCATIONS = ("data.files", "data.shards", "data.tokenizer", "data.corpora.*.files")
"""Keys with the location of the text. They may differ: its fingerprint tells whether the text is the same."""

FOLDERS = re.compile(r"""(?:^|(?<=[\s'"=\[(,:;|<>])|(?<=file://))/(?:[^\s'"/,\]]+/)+""")
"""A pattern of the folders of an absolute path, without its last part; addresses such as `s3://` do not match."""

ELSEWHERE = "…"
"""The placeholder in a table for the folders of any other path. (A bare `*.jsonl` would be an alias in YAML.)"""

HOME = "~"
"""The placeholder in a table for the home directory of the person who trained a run."""


def without_own_paths(text: str) -> str:
    """Replace the working directory and the home directory by placeholders; of other absolute paths keep the last part.

    So a table names no folder of the machine that a run was trained on.
    """
    for path, stands in ((Path.cwd(), "."), (Path.home(), HOME)):
        text = replace_path(text, path, stands)
    return FOLDERS.sub(f"{ELSEWHERE}/", text)


def replace_path(text: str, path: Path, stands: str) -> str:
    """Replace a path, alone or as the beginning of another path. The root is never replaced, because it begins all."""
    return re.sub(rf"(?<![\w.~-]){re.escape(str(path))}(?![\w.-])", stands, text) if len(path.parts) > 1 else text


def mark_restored(folder: Path, table: Path, timing: dict[str, float]) -> None:
    """Record in a run directory from which table it was restored.

    Args:
        folder: the run directory.
        table: the table.
        timing: `hours` and `tokens_per_second` of the whole run, because the table keeps only some of its rows.

    Raises:
        OSError: the file can't be written.
    """
    write_json(folder / RESTORED, {"table": str(table), **timing})


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
        known = read_json(folder / "versions.json")["data"]
        said = differences(read_text(folder / "config.yaml"), known, config_yaml, fingerprint)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{folder} is damaged ({in_one_line(error)}): remove it, and it is restored again") from error
    if said:
        raise ConfigError(
            f"{folder.name} in {restored_from(folder)} is a run of other settings: {said}; give those settings, or "
            "another output and table"
        )


def differences(there: str, known: Any, here: str, fingerprint: str) -> str:
    """Name up to three keys in which a finished run differs from a configuration, and whether the text does; or "".

    Keys that do not require a finished run to be continued may differ, and so may the location of the text.

    Args:
        there: the run's configuration, in YAML.
        known: the fingerprint of the run's text.
        here: the configuration now, in YAML.
        fingerprint: the fingerprint of the text now.

    Raises:
        ValueError: the run's configuration is damaged.
    """
    differing = reopening(parse_config(without_own_paths(there)), without_own_paths(here))
    said = [f"{key} (there {old}, here {new})" for key, old, new in differing if not _is_location(key)]
    if str(known) != fingerprint:
        said.append(f"the text (its fingerprint is {str(known)[:12]} there, {fingerprint[:12]} here)")
    return ", ".join(said[:3]) + " and more" * (len(said) > 3)


def _is_location(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in LOCATIONS)
