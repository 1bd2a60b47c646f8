"""Checkpoints that were changed at random, in every form: they are read, or refused in one line that names them."""

import json
import random
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from gptstar.checkpoint.format import Checkpoint, TrainingState, write
from gptstar.checkpoint.huggingface.export import export
from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.legacy import read_legacy
from gptstar.checkpoint.parts import write_parts
from gptstar.data.tokenizer import Tokenizer
from gptstar.inference.generate import generate
from gptstar.model import GPT, GPTConfig
from gptstar.ranks import Ranks
from gptstar.results.card import model_card
from support.models import legacy_state
from support.mutations import ODD, change_json, changed, damaged, refusal_of

TENSORS = [
    torch.tensor(1),
    torch.ones(2, 3),
    torch.zeros(0),
    torch.full((3, 3), torch.nan),
    torch.ones(3, dtype=torch.int64),
    torch.ones(1).expand(2**20, 2**20),
    torch.empty(2**20, 2**20, device="meta"),
    torch.ones(3, 3).to_sparse(),
    b"bytes",
    (1, 2),
    {1: 2},
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    tokenizer = Tokenizer.train(["the cat sat on the mat " * 40], 266)
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layers=2, d_model=12, n_heads=3, n_vocab=266, positions={"kind": "rotary"}))
    corpora = {"c4": {"source": "a", "licence": "b", "documents": 1, "tokens": 2, "bytes": 3}}
    data = {"fingerprint": "f", "shards": "/nowhere", "blocks": 3, "epochs": 0.5, "corpora": corpora}
    settings = {"seed": 3, "data.context_length": 16, "batch_tokens": 64, "optimizer.name": "adamw"}
    optimizer = {"norm.weight": {"step": torch.tensor(3.0), "exp_avg": torch.randn(12)}}
    training = TrainingState(7, 5, 1.25, settings, data, optimizer, {"devices": 1})
    return Checkpoint(model.config, model.state_dict(), tokenizer.json_text, training)


def repacked(path: Path, draw: random.Random) -> None:
    """Compress an archive's members, as other programs might."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    method = draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)


def of_file(path: Path, checkpoint: Checkpoint, draw: random.Random) -> Path:
    write(path / "a.ckpt", checkpoint)
    if draw.random() < 0.6:
        tree = torch.load(path / "a.ckpt", weights_only=True)
        torch.save(changed(tree, draw, ODD + TENSORS), path / "a.ckpt")
    else:
        if draw.random() < 0.5:
            repacked(path / "a.ckpt", draw)
        (path / "a.ckpt").write_bytes(damaged((path / "a.ckpt").read_bytes(), draw))
    return path / "a.ckpt"


def of_export(path: Path, checkpoint: Checkpoint, draw: random.Random) -> Path:
    export(checkpoint, path / "a.ckpt", context_length=16)
    name = draw.choice(["config.json", "config.json", "config.json", "tokenizer.json", "model.safetensors"])
    if name.endswith("json"):
        change_json(path / "a.ckpt" / name, draw)
    else:
        (path / "a.ckpt" / name).write_bytes(damaged((path / "a.ckpt" / name).read_bytes(), draw))
    return path / "a.ckpt"


def of_parts(path: Path, checkpoint: Checkpoint, draw: random.Random) -> Path:
    write_parts(path / "a.ckpt", checkpoint, Ranks())
    change_json(path / "a.ckpt/checkpoint.json", draw)
    return path / "a.ckpt"


def of_metadata(path: Path, checkpoint: Checkpoint, draw: random.Random) -> Path:
    """Bytes of tensors or their description, with a hash to match."""
    from gptstar.checkpoint.parts import _hashes

    write_parts(path / "a.ckpt", checkpoint, Ranks())
    name = draw.choice([".metadata", ".metadata", "__0_0.distcp"])
    (path / "a.ckpt" / name).write_bytes(damaged((path / "a.ckpt" / name).read_bytes(), draw))
    tree = json.loads((path / "a.ckpt/checkpoint.json").read_text())
    tree["files"] |= _hashes(path / "a.ckpt", name)
    (path / "a.ckpt/checkpoint.json").write_text(json.dumps(tree))
    return path / "a.ckpt"


def use(path: Path) -> None:
    """Do with a checkpoint what commands do."""
    known, checkpoint = read_with_identity(path)
    json.dumps(known)
    model_card(path, checkpoint, name="x", context_length=16)
    generate(checkpoint.build(), "the", 2)


FORMS: dict[str, Callable[[Path, Checkpoint, random.Random], Path]] = {
    "file": of_file,
    "export": of_export,
    "parts": of_parts,
    "metadata": of_metadata,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("begin", "end"), [(0, 12), pytest.param(12, 810, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_a_changed_checkpoint_is_read_or_refused(
    form: str, begin: int, end: int, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    n_refused = 0
    for seed in range(begin, end):
        (folder := tmp_path / str(seed)).mkdir()
        path = FORMS[form](folder, checkpoint, random.Random(seed))
        n_refused += bool(refusal_of(f"{form} {seed}", partial(use, path)))
    assert n_refused > (end - begin) // 4


def test_a_changed_legacy_file_is_read_or_refused(tmp_path: Path) -> None:
    state, path = legacy_state("parallel", "alibi"), tmp_path / "a.pth.tar"
    for seed in range(60):
        draw = random.Random(seed)
        torch.save(changed(state, draw, ODD + TENSORS), path)
        if draw.random() < 0.3:
            path.write_bytes(damaged(path.read_bytes(), draw))
        said = refusal_of(str(seed), partial(read_legacy, path))
        assert not said or "a.pth.tar" in said, seed
