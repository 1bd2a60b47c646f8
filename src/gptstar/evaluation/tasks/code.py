"""Errors of a task's own code, in one line: missing packages, files or settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from gptstar.errors import ConfigError, DataError, with_type

FETCHES = {
    "ruler": (
        "RULER generates its items here, for which its code needs: the packages of `pip install 'lm_eval[ruler]'`, "
        "`python -m nltk.downloader punkt_tab`, essays from GitHub (niah_single_2, niah_single_3, niah_multikey_1, "
        "niah_multivalue, niah_multiquery), SQuAD and HotpotQA (ruler_qa_squad, ruler_qa_hotpot), and a tokenizer of "
        "transformers: +evaluation.metadata.tokenizer=FOLDER, such as an exported model's folder"
    ),
}
"""Folders of tasks whose code downloads files that no bundle holds, with a description of them."""


def load_definition(task: str, path: Path) -> dict[str, Any]:
    """Read a task's definition, and import the functions that it names.

    Raises:
        ConfigError: its code can't be imported; the message says what to install.
    """
    try:
        return load_yaml(path)
    except Exception as error:  # the functions may be anybody's code
        raise _not_importable(task, path, error) from error


def refusal_of_code(task: str, config: Mapping[str, Any], path: Path | None, error: Exception) -> Exception | None:
    """Return the error for a task whose own code failed; None if only its items can be the cause."""
    if path is not None:
        try:
            load_yaml(path)
        except Exception as cause:
            return _not_importable(task, path, cause)
    if "custom_dataset" not in config:
        return None
    known = FETCHES.get(_folder(path))
    advice = "give its options as +evaluation.metadata.KEY=VALUE, and make sure that it can reach what it downloads"
    problem = f"{task} generates its items by its own code, which failed ({with_type(error)})"
    return DataError(f"{problem}: {known or advice}")


def _not_importable(task: str, path: Path, error: Exception) -> ConfigError:
    problem = f"the code of {task} can't be imported here ({with_type(error)})"
    if (known := FETCHES.get(_folder(path))) is not None:
        return ConfigError(f"{problem}: {known}")
    advice = f"correct {path}, or the code beside it"
    if isinstance(error, ImportError) or _folder(path):
        package = f" or {error.name}" if isinstance(error, ModuleNotFoundError) else ""
        advice = f"pip install 'lm_eval[tasks]'{package}, for the packages that it imports"
    return ConfigError(f"{problem}: {advice}")


def _folder(path: Path | None) -> str:
    """Return the folder within the harness's tasks that holds a definition; empty for the user's own."""
    parts = [] if path is None else list(path.parts)
    return parts[parts.index("tasks") + 1] if "lm_eval" in parts and "tasks" in parts else ""
