"""What the code of a task lacks: packages, files that it would fetch, or settings; said in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from gptstar.errors import ConfigError, DataError, with_type

FETCHES = {
    "ruler": (
        "RULER makes its items on this machine, and its code fetches: the packages of `pip install 'lm_eval[ruler]'`, "
        "`python -m nltk.downloader punkt_tab`, essays from GitHub (niah_single_2, niah_single_3, niah_multikey_1, "
        "niah_multivalue, niah_multiquery), SQuAD and HotpotQA (ruler_qa_squad, ruler_qa_hotpot); it needs a tokenizer "
        "of transformers: +evaluation.metadata.tokenizer=FOLDER, such as an exported model's folder"
    ),
}
"""Folders of tasks whose code fetches what no bundle holds, and what to fetch."""


def load_definition(task: str, path: Path) -> dict[str, Any]:
    """Read a task's definition, and import the functions that it names.

    Raises:
        ConfigError: its code can't be imported; says what to install.
    """
    try:
        return load_yaml(path)
    except Exception as error:  # of the functions that it names, which may be anybody's
        raise _not_importable(task, path, error) from error


def refusal_of_code(task: str, config: Mapping[str, Any], path: Path | None, error: Exception) -> Exception | None:
    """The refusal of a task whose own code failed with an error; None where its items alone are the cause."""
    if path is not None:
        try:
            load_yaml(path)
        except Exception as cause:
            return _not_importable(task, path, cause)
    if "custom_dataset" not in config:
        return None
    known = FETCHES.get(_folder(path))
    said = with_type(error)
    advice = "give what it takes as +evaluation.metadata.KEY=VALUE; what it fetches has to be in reach"
    return DataError(f"{task} makes its items by code of its own, which failed ({said}): {known or advice}")


def _not_importable(task: str, path: Path, error: Exception) -> ConfigError:
    said = with_type(error)
    if (known := FETCHES.get(_folder(path))) is not None:
        return ConfigError(f"the code of {task} can't be imported here ({said}): {known}")
    advice = f"correct {path}, or the code beside it"
    if isinstance(error, ImportError) or _folder(path):
        package = f" or {error.name}" if isinstance(error, ModuleNotFoundError) else ""
        advice = f"pip install 'lm_eval[tasks]'{package}, for the packages that it imports"
    return ConfigError(f"the code of {task} can't be imported here ({said}): {advice}")


def _folder(path: Path | None) -> str:
    """The folder of the harness's tasks that a definition is in."""
    parts = [] if path is None else list(path.parts)
    return parts[parts.index("tasks") + 1] if "lm_eval" in parts and "tasks" in parts else ""
