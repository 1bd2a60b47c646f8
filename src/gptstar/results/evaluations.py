"""Evaluations as pandas frames: a line is a loss at a context length, or a score on a task."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from gptstar.evaluation.compare import names_of
from gptstar.keys import flatten
from gptstar.results.loaded import Loaded, home_of
from gptstar.results.run import DESCRIPTION, Run
from gptstar.results.sources import Source
from gptstar.terminal import plain
from gptstar.training.status import read_config

LENGTH_FIGURES = (
    *("study", "run", "checkpoint", "targets", "trained_at", "scaling", "context", "context_length", "multiple"),
    *("loss", "low", "high", "change", "change_low", "change_high", "reference"),
    *("perplexity", "bits_per_byte", "n_targets", "key_loss", "key_low", "key_high"),
)

TASK_FIGURES = ("run", "checkpoint", "tokens", "task", "metric", "subset", "value", "low", "high", "items")

Lines = Iterator[tuple[Any, ...]]


@dataclass(frozen=True)
class Evaluation:
    """What one file says of one checkpoint.

    Attributes:
        run: the name of the run that was evaluated; of the folder, where that is not among the runs.
        tree: the file, as `results.json` has it.
        part: what is said of this checkpoint: one of the file's curves, or all of it.
        trained_at: the context length in training, in tokens, by the run's configuration; NaN if it is not known.
    """

    run: str
    tree: Mapping[str, Any]
    part: Mapping[str, Any]
    trained_at: float


def lengths(*sources: Source, controls: bool = False) -> pd.DataFrame:
    """List loss against context length, from studies of length and from what runs wrote about themselves.

    Args:
        sources: run directories, folders of such, folders with a `results.json` of `evaluation=length`, such files,
            patterns, and lists. A study that is of none of the runs given has its folder's name as `run`.
        controls: whether to list readings with attention or text cut at the training context, too.

    Returns:
        The columns of `LENGTH_FIGURES`. `study` says how and on what it was read: the protocol and the text. Losses are
        comparable within a study where `targets`, a fingerprint of the tokens scored, is the same ("" if it is not
        known); changes are, whatever the targets. Where several targets were scored at one training context, or several
        checkpoints of a run were read, `study` names these too, so that a run has one curve in each study and for each
        `scaling` of its positions and `context`, which is `full`, or of controls `cut`, `cut_with_sinks` or
        `truncated`. `checkpoint` is its name. `trained_at`, `context_length` and `reference` are in
        tokens, and `multiple` is of `trained_at`. `loss`, with its 95 % interval over the text from `low` to `high`, is
        in nats per token. `change` is that of the loss against the context length `reference` on the same targets,
        paired, with its 95 % interval from `change_low` to `change_high`; NaN at the reference. `bits_per_byte` is NaN
        if the tokenizer does not tell. `n_targets` is how many tokens were scored. `key_loss`, with its interval, is
        that of the key tokens; NaN without a judge. There is no line where a model is
        undefined. Of two evaluations of a checkpoint by the same study on the same targets the later one counts. If
        there is none, a `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """
    advice = "run `python evaluate.py evaluation=length checkpoint=RUN`, or train with reading.multiples=[1,2,4,8]"
    make = functools.partial(lengths_of, controls=controls)
    return frame_of(sources, make, "reading at several context lengths", advice)


def lengths_of(found: Loaded, *, controls: bool = False) -> pd.DataFrame:
    """Make the frame of `lengths`."""
    frame = readings_of(found)[list(LENGTH_FIGURES)]
    return frame if controls else frame[frame["context"] == "full"].reset_index(drop=True)


def readings_of(found: Loaded, *, undefined: bool = False) -> pd.DataFrame:
    """Make the frame of `lengths` with controls, and `sums` and `counts` of each independent unit of text as tuples.

    `undefined` keeps the lengths at which a model is undefined; `is_defined` tells them apart.
    """
    columns = [*LENGTH_FIGURES, "sums", "counts", "is_defined"]
    frame = pd.DataFrame(lines_of_kind(found, "length", _length_lines), columns=[*columns, "curve"])
    if not frame.empty:
        key = ["study", "run", "checkpoint", "targets", "scaling", "context"]
        frame = frame[frame["curve"] == frame.groupby(key)["curve"].transform("last")]
        frame = _told_apart(frame, "trained_at", "targets", lambda targets: targets[:8] or "unknown")
        frame = _told_apart(frame, "run", "checkpoint", lambda name: name.rpartition("/")[2])
        frame = frame if undefined else frame[frame["is_defined"]]
    return frame[columns].reset_index(drop=True)


def _told_apart(frame: pd.DataFrame, within: str, column: str, short: Callable[[str], str]) -> pd.DataFrame:
    """Name the values of a column in the studies that have several of them within another column's."""
    n_values = frame.groupby(["study", within], dropna=False)[column].transform("nunique")
    has_several = frame["study"].isin(frame.loc[n_values > 1, "study"])
    named = frame["study"] + f", {column} " + frame[column].map(short)
    return frame.assign(study=frame["study"].mask(has_several, named))


def tasks(*sources: Source) -> pd.DataFrame:
    """List scores on tasks.

    Args:
        sources: as for `lengths`, with a `results.json` of `evaluate.py` on tasks.

    Returns:
        The columns of `TASK_FIGURES`. `tokens` is how many the checkpoint had read in training; NaN if it is not known.
        `value`, with its 95 % interval over items from `low` to `high` (NaN without one), is in the metric's own unit,
        such as a share of items from 0 to 1 for `acc`; `subset` is `all` or `clean`, the items that training never saw.
        If there is none, a `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """
    advice = "run `python evaluate.py checkpoint=RUN output=results/NAME`, and give results/NAME as well"
    return frame_of(sources, tasks_of, "score on a task", advice)


def tasks_of(found: Loaded) -> pd.DataFrame:
    """Make the frame of `tasks`."""
    return pd.DataFrame(lines_of_kind(found, "tasks", _task_lines), columns=list(TASK_FIGURES))


def frame_of(sources: Sequence[Source], make: Callable[[Loaded], pd.DataFrame], what: str, advice: str) -> pd.DataFrame:
    """Make a frame; warn of what is damaged and, if there is nothing, how to get it."""
    found = Loaded(sources)
    frame, n = make(found), len(found.runs)
    where = f"none of these {n} runs has a" if n > 1 else "this run has no" if n else "there is no"
    there = "" if n else f" in {', '.join(map(str, found.paths))}"
    found.warn(f"{where} {what}{there}: {advice}" if frame.empty else "", depth=3)
    return frame


def _length_lines(evaluation: Evaluation) -> Lines:
    curve = evaluation.part
    names = (study_of(evaluation.tree, curve), evaluation.run, str(curve["checkpoint"].get("name")))
    targets = str(curve.get("targets") or "")
    trained_at = number(curve["trained_at"] or evaluation.trained_at)
    reference = number(curve.get("reference"))
    for point in curve["lengths"]:
        length, is_defined = number(point["context_length"]), point["loss"] is not None
        loss, perplexity, bits = (point[each] or {} for each in ("loss", "perplexity", "bits_per_byte"))
        change, key_loss = point.get("change") or {}, point.get("key_loss") or {}
        yield (
            *(*names, targets, trained_at, scaling_of(curve), context_of(curve), length, length / trained_at),
            *(number(loss[each] if is_defined else None) for each in ("value", "low", "high")),
            *(number(change.get("difference")), number(change.get("low")), number(change.get("high")), reference),
            *(number(perplexity["value"] if is_defined else None), number(bits["value"]) if bits else math.nan),
            *(number(point["tokens"]), *(number(key_loss.get(each)) for each in ("value", "low", "high"))),
            *(tuple(point.get("sums") or ()), tuple(curve.get("counts") or ()), is_defined, id(curve)),
        )


def scaling_of(curve: Mapping[str, Any]) -> str:
    """How a curve's positions were scaled; earlier files had a key for rotary ones only. KeyError: it does not say."""
    return str(curve["scaling"] if "scaling" in curve else curve["rotary_scaling"])


def context_of(curve: Mapping[str, Any]) -> str:
    """What is read beyond the training context: `full`, or a control, such as `cut`."""
    return str(curve.get("context", "full"))


def study_of(tree: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    """What has to be the same for losses at context lengths to be compared, beside the targets: protocol and text."""
    protocol, text = tree["protocol"], tree["text"]
    name = protocol["protocol"]
    keys = ["targets", "room", "stride", "column", "documents", "last_bytes"]
    keys += ["legacy_metric"] if name == "legacy" else []
    keys += [] if curve.get("targets") else ["max_tokens"]  # how much was read, where nothing else tells it
    words = [f"{key} {protocol[key]}" for key in keys if protocol.get(key)]
    return ", ".join([name, *words, f"text {_fingerprint(text)}"])


def _fingerprint(text: Mapping[str, Any]) -> str:
    """The end of the shards' fingerprint; of files, a hash of theirs, or of the address where there is none."""
    if "files" not in text:
        return str(text.get("fingerprint"))[-12:]
    known = [str(hashed or address) for address, hashed in text["files"].items()]
    return sha256("\n".join(known).encode()).hexdigest()[:12]


def _task_lines(evaluation: Evaluation) -> Lines:
    tree = evaluation.tree
    name, tokens = tree["checkpoint"]["name"], tree["checkpoint"].get("tokens")
    for task in tree["tasks"]:
        for metric in task["metrics"]:
            names = (task["task"], metric["name"], metric["subset"] or "all")
            values = (number(metric[key]) for key in ("value", "low", "high", "items"))
            yield evaluation.run, str(name), number(tokens), *map(str, names), *values


def lines_of_kind(found: Loaded, kind: str, lines_of: Callable[[Evaluation], Lines]) -> list[tuple[Any, ...]]:
    """Make the lines of every evaluation of a kind, in the order of their dates, but for those that are damaged."""
    places = _places(found)

    def read(file: Path) -> list[tuple[Any, ...]]:
        tree = found.evaluations[file]
        return [line for each in _parts(file, tree, found.runs, places[file]) for line in lines_of(each)]

    files = [file for file, tree in found.evaluations.items() if tree.get("kind") == kind]
    return [line for file in files for line in found.of_file(file, read) or ()]


def _places(found: Loaded) -> dict[Path, str]:
    """Name the home of each file, without the folders that all are in that are of no run."""
    homes = {file: home_of(file) for file in found.evaluations}
    folders = {run.path.resolve() for run in found.runs.values()}
    parents = [home.parent for home in homes.values() if home not in folders]
    shared = os.path.commonpath(parents) if parents else "/"
    return {file: plain(os.path.relpath(home, shared)) for file, home in homes.items()}


def _parts(file: Path, tree: dict[str, Any], runs: Mapping[str, Run], place: str) -> Iterator[Evaluation]:
    """The parts of an evaluation that are each of one checkpoint, with the names of the runs, where they are here."""
    parts = tree["curves"] if tree["kind"] in ("length", "recall") else [tree]
    folders, own = {run.path.resolve(): name for name, run in runs.items()}, home_of(file)
    checkpoints = {str(part["checkpoint"].get("sha256")): part["checkpoint"] for part in parts}
    names = dict(zip(checkpoints, names_of(list(checkpoints.values())), strict=True))
    several = len(checkpoints) > 1
    for part in parts:
        checkpoint = part["checkpoint"]
        home = Path(checkpoint["path"]).parent if checkpoint.get("path") else own
        is_others = several or _is_other_run(home, own)  # the folder's own run may be one of several
        name = folders.get(home, None if is_others else folders.get(own))
        config = runs[name].config if name is not None else _config(home)
        if name is None:
            of_which = plain(names[str(checkpoint.get("sha256"))])
            name = f"{folders.get(own, place)}: {of_which}" if several or own in folders else place
            name += " (results)" if name in runs else ""
        yield Evaluation(name, tree, part, number(flatten(config).get("data.context_length")))


def _is_other_run(home: Path, own: Path) -> bool:
    """Whether a checkpoint's folder is a run, and not the one that results are in or was copied from."""
    files = [folder / DESCRIPTION for folder in (home, own)]
    return files[0].is_file() and (not files[1].is_file() or files[0].read_bytes() != files[1].read_bytes())


def _config(home: Path) -> dict[str, Any]:
    """The configuration of a run that was not given; empty if it can't be read."""
    try:
        return read_config(home)
    except (OSError, ValueError):
        return {}


def number(value: Any) -> float:
    """A figure; NaN where there is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.60} is not a number")
    return value


def flag(value: Any) -> bool | None:
    """Return whether something is so; None where that is not known."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{value!r:.60} is neither true nor false")
    return value
