"""The defaults of a run with its own text or model, but without an experiment."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptstar.errors import ConfigError, DataError

NEUTRAL = "experiment=none"
"""The override that replaces the quickstart's settings, which suit only its own model and text."""

OWN_TEXT_OR_MODEL = re.compile(r"\+{0,2}(model|data|init_from|data\.(files|source)|(corpus@)?data\.corpora[^=]*)=")
AN_EXPERIMENT = re.compile(r"[+~]*experiment\b|--config-name|-cn")

SAID = (
    *("total_steps", "batch_tokens", "data.context_length", "optimizer.learning_rate", "schedule.warmup_steps"),
    "model.n_vocab",
)
"""The defaults that a run without an experiment prints at its start."""

NAME = "run_name"
"""The OmegaConf resolver with which a configuration names a run after its text."""


def with_neutral_defaults(words: Sequence[str]) -> list[str]:
    """Return a command line with `experiment=none` added if it chooses a model or a text, but no experiment."""
    words = list(words)
    own = [place for place, word in enumerate(words) if OWN_TEXT_OR_MODEL.match(word)]
    if own and not any(AN_EXPERIMENT.match(word) for word in words):
        words.insert(own[-1] + 1, NEUTRAL)  # next to an override, because flags may follow
    return words


def register_run_name() -> None:
    """Register the resolver `${run_name:${data}}`, which names a run after its text."""
    OmegaConf.register_new_resolver(NAME, run_name, replace=True)


def run_name(data: Any) -> str:
    """Name a run after its text: the corpus, the folder of the first file or of the shards, or `bundled`.

    Args:
        data: the composed group `data`.
    """
    corpora, files, shards = (data.get(key) for key in ("corpora", "files", "shards"))
    first = files[0] if isinstance(files, ListConfig) and files else files
    if data.get("source") == "bundled":
        name = "bundled"
    elif isinstance(first, str):  # the configuration's rules refuse other values
        name = _folder(first)
    elif isinstance(corpora, DictConfig) and corpora:
        name, *others = (str(corpus) for corpus in corpora)
        name += f"-and-{len(others)}-more" if others else ""
    else:
        name = str(shards or "").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def _folder(pattern: str) -> str:
    """Return the last folder of a glob without wildcards, or the file's name if there is none."""
    *folders, file = pattern.rpartition("://")[2].split("/")
    named = [each for each in folders if each.strip(".") and not re.search(r"[*?\[{]", each)]
    return named[-1] if named else file.partition(".")[0].replace("*", "")


def follow_text(composed: DictConfig, words: Sequence[str]) -> None:
    """Without an experiment, derive the vocabulary from the tokenizer, and limit the warm-up to a tenth of the run.

    Args:
        composed: the composed configuration, which is changed.
        words: the overrides on the command line; keys that they set are kept.
    """
    if NEUTRAL not in words:
        return
    has_size = is_given("model.n_vocab", words) or composed.get("init_from") is not None
    if not has_size and (size := _vocabulary(composed.data)) is not None:
        composed.model.n_vocab = size
    steps, warmup = composed.get("total_steps"), composed.schedule.get("warmup_steps")
    numbers = type(steps) is int and type(warmup) is int  # the configuration's rules refuse other values
    if numbers and not is_given("schedule.warmup_steps", words):
        composed.schedule.warmup_steps = min(warmup, max(0, steps // 10))


def defaults_line(composed: DictConfig, words: Sequence[str]) -> str | None:
    """Return a line with the defaults of a run without an experiment; None with one, or if all keys are given."""
    chosen = list(_chosen(composed, words)) if NEUTRAL in words else []
    if not chosen:
        return None
    return f"no experiment given: defaults are {', '.join(chosen)}; change them by KEY=VALUE, or give experiment=NAME"


def _chosen(composed: DictConfig, words: Sequence[str]) -> Iterator[str]:
    begins_anew = composed.get("init_from") is None
    if begins_anew and not is_given("model", words):
        yield "model=tiny"
    for key in SAID:
        if is_given(key, words) or (key == "model.n_vocab" and not begins_anew):
            continue
        follows = key == "model.n_vocab" and _vocabulary(composed.data) is not None
        yield f"{key}={OmegaConf.select(composed, key)}" + (" (the tokenizer's vocabulary)" if follows else "")


def is_given(key: str, words: Sequence[str]) -> bool:
    """Whether one of the overrides sets a key."""
    return any(word.lstrip("+").startswith(f"{key}=") for word in words)


def _vocabulary(data: DictConfig) -> int | None:
    """Return the size of the given tokenizer, or of the one that prepared the shards; None if neither exists yet."""
    from gptstar.choices import parse_fields
    from gptstar.data.config import DataConfig
    from gptstar.data.storage.manifest import read_manifest
    from gptstar.data.storage.shards import ShardFolder
    from gptstar.data.tokenizer import Tokenizer

    try:
        if isinstance(file := data.get("tokenizer"), str):
            return Tokenizer.from_file(Path(file)).n_vocab
        if data.get("corpora"):
            tree: Any = OmegaConf.to_container(data, resolve=True)
            if (own := parse_fields(DataConfig, tree, "data").own_tokenizer) is not None:
                return own.n_vocab
        reads_shards = data.get("source") == "local" and data.get("files") is None and not data.get("corpora")
        if reads_shards and isinstance(shards := data.get("shards"), str):
            if "://" in shards:
                return ShardFolder(shards, int(data.cache_bytes)).manifest.n_vocab
            return read_manifest(Path(shards) / "manifest.json").n_vocab  # without verifying the shards' hashes
    except (ConfigError, DataError, OmegaConfBaseException, TypeError, ValueError):
        return None  # reading the text will report the error; `gptstar plan` needs no text
    return None
