"""Checkpoints that were changed at random, in every form: they are read, or refused in one line that names them."""

import copy
import json
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptstar.checkpoint.format import Checkpoint, TrainingState, write
from gptstar.checkpoint.huggingface.export import export
from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.legacy import read_legacy
from gptstar.checkpoint.parts import write_parts
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import Refusal
from gptstar.inference.generate import generate
from gptstar.model import GPT, GPTConfig
from gptstar.ranks import Ranks
from gptstar.results.card import model_card
from support.models import legacy_state

SECONDS = 20
"""After which a reader hangs."""

ODD = [
    *(None, True, False, 0, 1, -1, 3, 3.5, 10**9, 10**18, 2**63, 10**30, 10**5000, float("nan"), float("inf")),
    *("", "alibi2", "swish", "10", "\x00", "x" * 10_000, [], [3], {}, {"kind": "rotary"}, {"kind": 3}, {"": None}),
]
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


def changed(tree: Any, draw: random.Random, odd: list[Any]) -> Any:
    """A copy of a tree with one or two values, keys or branches changed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 2])):
        here = tree
        while True:
            key = draw.choice(list(here))
            below = here[key]
            if not (isinstance(below, dict) and below and draw.random() < 0.85):
                break
            here = below
        match draw.randrange(10):
            case 0:
                del here[key]
            case 1:
                here[draw.choice(["new", "n_ctx", "n_layers"])] = copy.deepcopy(draw.choice(odd))
            case 2 if isinstance(below, int):
                here[key] = below + draw.choice([-1, 1])
            case _:
                here[key] = copy.deepcopy(draw.choice(odd))
        if not tree:
            break
    return tree


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes of which some are flipped, cut off, doubled or put elsewhere."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 20])):
        place = draw.choice([draw.randrange(len(changed)), -1 - draw.randrange(min(400, len(changed)))])
        match draw.randrange(6):
            case 0:
                changed = changed[: place % len(changed)] or bytearray(b"P")
            case 1:
                changed[place:place] = draw.randbytes(draw.randrange(1, 9))
            case _:
                changed[place] = draw.randrange(256)
    return bytes(changed)


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


def _json(path: Path, draw: random.Random) -> None:
    if draw.random() < 0.05:
        path.write_text("[" * 100_000)
    elif draw.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), draw))
    else:
        tree = changed(json.loads(path.read_text()), draw, [odd for odd in ODD if odd != 10**5000])
        path.write_text(json.dumps(tree))


def of_export(path: Path, checkpoint: Checkpoint, draw: random.Random) -> Path:
    export(checkpoint, path / "a.ckpt", context_length=16)
    name = draw.choice(["config.json", "config.json", "config.json", "tokenizer.json", "model.safetensors"])
    if name.endswith("json"):
        _json(path / "a.ckpt" / name, draw)
    else:
        (path / "a.ckpt" / name).write_bytes(damaged((path / "a.ckpt" / name).read_bytes(), draw))
    return path / "a.ckpt"


def of_parts(path: Path, checkpoint: Checkpoint, draw: random.Random) -> Path:
    write_parts(path / "a.ckpt", checkpoint, Ranks())
    _json(path / "a.ckpt/checkpoint.json", draw)
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


class Hang(BaseException):
    """Nobody catches it."""


@pytest.fixture
def refused() -> Iterator[Callable[..., str]]:
    """Run something that may refuse, and nothing else: what it says, in one line, or nothing."""

    def stop(*_: object) -> None:
        raise Hang(f"it was not read in {SECONDS} seconds")

    def attempt(what: str, action: Callable[[Path], object], path: Path) -> str:
        signal.alarm(SECONDS)
        try:
            action(path)
        except Refusal as refusal:
            said = str(refusal)
        except BaseException as error:
            raise AssertionError(f"{what}: {error!r}") from error
        else:
            said = ""
        finally:
            signal.alarm(0)
        assert "\n" not in said, what
        assert len(said) < 3000, what
        return said

    before = signal.signal(signal.SIGALRM, stop)
    yield attempt
    signal.signal(signal.SIGALRM, before)


FORMS: dict[str, Callable[[Path, Checkpoint, random.Random], Path]] = {
    "file": of_file,
    "export": of_export,
    "parts": of_parts,
    "metadata": of_metadata,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("begin", "end"), [(0, 60), pytest.param(60, 810, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_a_changed_checkpoint_is_read_or_refused(
    form: str, begin: int, end: int, checkpoint: Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    n_refused = 0
    for seed in range(begin, end):
        (folder := tmp_path / str(seed)).mkdir()
        path = FORMS[form](folder, checkpoint, random.Random(seed))
        n_refused += bool(refused(f"{form} {seed}", use, path))
    assert n_refused > (end - begin) // 4


def test_a_changed_legacy_file_is_read_or_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    state, path = legacy_state("parallel", "alibi"), tmp_path / "a.pth.tar"
    for seed in range(60):
        draw = random.Random(seed)
        torch.save(changed(state, draw, ODD + TENSORS), path)
        if draw.random() < 0.3:
            path.write_bytes(damaged(path.read_bytes(), draw))
        said = refused(str(seed), read_legacy, path)
        assert not said or "a.pth.tar" in said, seed
