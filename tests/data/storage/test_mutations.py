"""Folders of shards that were changed at random: they are read, or refused in one line."""

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gptstar.config import TrainConfig
from gptstar.data.config import DataConfig
from gptstar.data.inspection.inspect import inspect
from gptstar.data.order.training_data import training_data, validation_data
from gptstar.data.order.windows import StepSampler
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.shards import ShardFolder
from gptstar.entry import compose
from gptstar.files import file_sha256
from support.mutations import change_json, damaged, refusal_of
from support.runs import SMALL


@pytest.fixture(scope="module")
def config(text: str, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The configuration of shards that are prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    composed = compose("train", [*SMALL, "data=local", f"data.files={text}", f"data.shards={folder}"])
    data = TrainConfig.parse(composed).recipe.data
    ensure_prepared(data, 300, Console(file=io.StringIO()))
    return data


def change_array(folder: Path, draw: random.Random) -> None:
    """Write another array in place of one, with the hash that belongs to it in the manifest."""
    tree = json.loads((folder / "manifest.json").read_text())
    shard = draw.choice(tree["shards"])
    kind, key = draw.choice([("", "sha256"), (".documents", "documents_sha256"), (".segments", "segments_sha256")])
    path = folder / f"{shard['name']}{kind}.npy"
    array = np.load(path)
    match draw.randrange(7):
        case 0:
            array = array.astype(draw.choice(["i8", "f4", "u1", "?", "c8", "S3", "O"]))
        case 1:
            array = array.reshape(1, -1)
        case 2:
            array = array[: draw.randrange(len(array))]
        case 3:
            array = array[::-1]
        case 4:
            array = array.copy()
            array[draw.randrange(len(array))] = draw.choice([0, 299, 300, 65_535])
        case 5:
            array = array + array.dtype.type(draw.choice([1, 7, 60_000]))
        case _:
            array = np.asfortranarray(np.stack([array, array]))
    np.save(path, array)
    if draw.random() < 0.3:
        path.write_bytes(damaged(path.read_bytes(), draw))
    shard[key] = file_sha256(path)
    (folder / "manifest.json").write_text(json.dumps(tree))


def change_manifest(folder: Path, draw: random.Random) -> None:
    change_json(folder / "manifest.json", draw)


def change_tokenizer(folder: Path, draw: random.Random) -> None:
    change_json(folder / "tokenizer.json", draw)


def change_file(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.rglob("*.npy")))
    if draw.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))


def use(folder: Path, config: DataConfig) -> None:
    """Do with shards what a run and `data inspect` do."""
    shards = ShardFolder(folder)
    for windows in (config, replace(config, windows="documents")):
        read, mixture, _ = training_data(shards, windows)
        sampler = StepSampler(
            read, mixture, seed=0, sequences_per_step=4, micro_batch_size=4, start_step=0, total_steps=2
        )
        for numbers in sampler:
            batch = read.__getitems__(numbers)
            assert batch.max() < 300
        validation_data(shards, windows)
    shards.manifest.training_corpora()
    inspect(shards, Console(file=io.StringIO()), samples=2, picture=None, seed=0)


CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    "manifest": change_manifest,
    "array": change_array,
    "tokenizer": change_tokenizer,
    "file": change_file,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("begin", "end"), [(0, 12), pytest.param(12, 810, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_shards_are_read_or_refused(
    change: str, begin: int, end: int, config: DataConfig, tmp_path: Path
) -> None:
    shards = Path(config.shards)
    use(shards, config)
    n_refused = 0
    for seed in range(begin, end):
        folder = shutil.copytree(shards, tmp_path / "shards")
        CHANGES[change](folder, random.Random(seed))
        n_refused += bool(refusal_of(f"{change} {seed}", partial(use, folder, config)))
        shutil.rmtree(folder)
    assert n_refused > (end - begin) // 4
