"""A line of the table of a study: a run, with its small files packed."""

import base64
import csv
import json
import math
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.files import read_json, read_text
from gptstar.launch.thinning import DIGITS, SHARE_DIGITS, rounded, thinned
from gptstar.results.loaded import REPORT
from gptstar.results.run import DESCRIPTION, Run
from gptstar.training.metrics_csv import METRICS_FILE
from gptstar.training.restored import differences, replace_path, without_own_paths
from gptstar.training.status import FILE_NAME as STATUS_FILE
from gptstar.training.status import parse_config

CONFIG = "config.yaml"
LENGTH = "length/results.json"
RESULTS = (LENGTH, "recall/results.json", "heads/results.json")
EXACT = (DESCRIPTION, STATUS_FILE)
TREES = (*EXACT, REPORT, *RESULTS)
TEXTS = (CONFIG, METRICS_FILE)

RUN = "{run}"
"""The placeholder in a table for the path of the run directory."""

TIMING = ("hours", "tokens_per_second")
"""Figures of a whole run, which the rows that a table keeps of it do not give."""

SHARED = ("total_steps", "batch_tokens")
"""Settings that all runs of a table share, unless the sweep varies them."""

EXPERIMENT, TEXT, TEXT_KEYS = "experiment", ("data", "model", "model.n_vocab"), ("data.", "+data.")
"""Keys by which a sweep varies all settings, or the text."""


@dataclass(frozen=True)
class Line:
    """A run in a table.

    Attributes:
        text: the line as it stands in the file.
        files: the run's files.
        timing: those of `TIMING` that the line has; older lines have none.
    """

    text: str
    files: dict[str, Any]
    timing: dict[str, float]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the run's text."""
        return str(self.files[DESCRIPTION].get("data"))

    @property
    def config_yaml(self) -> str:
        """The run's configuration; the placeholder of its path is a plain word, as braces mean something in YAML."""
        return str(self.files[CONFIG]).replace(RUN, "RUN")

    def differences(self, config_yaml: str, fingerprint: str) -> str:
        """Name the differences from a configuration and a text, as `differences` in `gptstar.training.restored`."""
        return differences(self.config_yaml, self.fingerprint, config_yaml.replace(RUN, "RUN"), fingerprint)


def unshared(lines: Sequence[Line], config_yaml: str, fingerprint: str, swept: Collection[str]) -> Iterator[str]:
    """Name the settings of a new run that no run of the table has, of those that the runs of a table share."""
    if EXPERIMENT in swept:
        return
    config, known = parse_config(config_yaml), [parse_config(line.config_yaml) for line in lines]
    for key in SHARED:
        if key not in swept and config.get(key) not in (values := [each.get(key) for each in known]):
            yield f"{key}={config.get(key)} (there {values[0]})"
    varies_text = any(key in TEXT or key.startswith(TEXT_KEYS) for key in swept)
    if not varies_text and fingerprint not in (texts := [line.fingerprint for line in lines]):
        yield f"this text (its fingerprint is {texts[0][:12]} there, {fingerprint[:12]} here)"


def line_of(folder: Path, name: str) -> Line:
    """Make the line of a run: its name, when it ended, its loss and speed, for readers, and its compressed files."""
    files, run = dict(_files_of(folder)), Run.read(folder)
    timing = {key: rounded(value) for key in TIMING if math.isfinite(value := getattr(run, key))}
    text = json.dumps(files, separators=(",", ":"), ensure_ascii=False)
    packed = base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    rows = [row for row in csv.DictReader(files.get(METRICS_FILE, "").splitlines()) if row.get("validation/loss")]
    loss = float(rows[-1]["validation/loss"]) if rows else None
    shown = {"run": name, "at": files[STATUS_FILE].get("at"), "validation_loss": loss, **timing}
    return Line(json.dumps({**shown, "files": packed}), files, timing)


def unpacked(packed: str) -> dict[str, Any]:
    """Decompress the files of a run, and check that they are those that a table holds."""
    files = json.loads(zlib.decompress(base64.b85decode(packed)))
    if missing := {CONFIG, *EXACT} - set(files):
        raise ValueError(f"a run lacks {min(missing)}")
    if unknown := set(files) - {*TREES, *TEXTS}:
        raise ValueError(f"{min(unknown)} is not a file of a run that tables hold")
    if any(not isinstance(files[file], str) for file in TEXTS if file in files):
        raise ValueError("a text is something else")
    return dict(files)


def _files_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the files of a run directory that a table holds: each file's name, and its text or parsed JSON."""
    yield CONFIG, _harmless(read_text(folder / CONFIG), folder)
    for file in TREES:
        if (folder / file).exists():
            tree = _harmless_tree(read_json(folder / file), folder)
            digits = DIGITS if file in (REPORT, LENGTH) else SHARE_DIGITS
            yield file, tree if file in EXACT else rounded(tree, digits)
    if (folder / METRICS_FILE).exists():
        yield METRICS_FILE, thinned(folder / METRICS_FILE)


def _harmless(text: str, folder: Path) -> str:
    """Replace the paths of the run directory and of this machine in a text by placeholders."""
    return without_own_paths(replace_path(text, folder.resolve(), RUN))


def _harmless_tree(tree: Any, folder: Path) -> Any:
    """Replace paths in all texts of parsed JSON."""
    if isinstance(tree, str):
        return _harmless(tree, folder)
    if isinstance(tree, list):
        return [_harmless_tree(each, folder) for each in tree]
    if isinstance(tree, dict):
        return {key: _harmless_tree(value, folder) for key, value in tree.items()}
    return tree
