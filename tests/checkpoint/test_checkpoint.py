import hashlib
import io
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.checkpoint.format import Checkpoint, TrainingState, write
from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.kept import BEST, LAST, link, newest_first, of_step, prune
from gptstar.checkpoint.parts import _Plain, verify_parts, write_parts
from gptstar.checkpoint.read import find, read
from gptstar.cli import main
from gptstar.errors import CheckpointError
from gptstar.model import GPT, GPTConfig
from gptstar.ranks import Ranks


@pytest.fixture
def checkpoint() -> Checkpoint:
    model = GPT(GPTConfig(n_layers=2, d_model=22, n_heads=11, n_vocab=97))
    optimizer = {"norm.weight": {"step": torch.tensor(3.0), "exp_avg": torch.randn(22)}}
    training = TrainingState(7, 5, 1.25, {"seed": 3}, {"fingerprint": "f"}, optimizer)
    return Checkpoint(model.config, model.state_dict(), '{"a": 1}', training)


def test_what_is_written_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", checkpoint)
    again = read(tmp_path / "a.ckpt")
    assert again.model.as_dict() == checkpoint.model.as_dict()
    assert again.tokenizer == checkpoint.tokenizer
    torch.testing.assert_close(again.weights, dict(checkpoint.weights), rtol=0, atol=0)
    assert replace(again.training, optimizer={}) == replace(checkpoint.training, optimizer={})
    torch.testing.assert_close(again.training.optimizer, checkpoint.training.optimizer, rtol=0, atol=0)


def test_load_gives_the_plain_model_in_eval_mode(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(tmp_path / "best.ckpt", checkpoint)
    model = gptstar.load(tmp_path)
    assert type(model) is GPT
    assert not model.training
    tokens = torch.randint(97, (2, 13))
    assert torch.equal(model(tokens), checkpoint.build()(tokens))
    assert model(tokens).shape == (2, 13, 97)


def test_the_file_needs_no_code_to_be_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", checkpoint)
    tree = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert tree["model"]["d_head"] == 2
    assert tree["training"]["step"] == 7
    assert not [name for name in tree["weights"] if "lm_head" in name or "slopes" in name]


def test_a_run_directory_means_its_best_and_then_its_last(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither best.ckpt nor last.ckpt"):
        find(tmp_path)
    write(tmp_path / "last.ckpt", checkpoint)
    assert find(tmp_path).name == "last.ckpt"
    link(tmp_path / "last.ckpt", "best.ckpt")
    assert find(tmp_path).name == "best.ckpt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 1_000_000):
        path = of_step(tmp_path, step)
        if step == 15:
            path.mkdir()
        else:
            path.touch()
        if step == 5:
            link(path, BEST)
        link(path, LAST)
    (tmp_path / ".step-000030.ckpt.partial").mkdir()
    prune(tmp_path, keep=2)
    names = ["best.ckpt", "last.ckpt", "step-000005.ckpt", "step-000020.ckpt", "step-1000000.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [path.name for path in newest_first(tmp_path)] == [names[-1], names[-2], names[-3]]


class TestInParts:
    """A folder of one rank; tests of runs have several."""

    def test_what_is_written_is_read(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        for _ in range(2):  # the second replaces the first
            write_parts(tmp_path / "a.ckpt", checkpoint, Ranks())
        assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
        again = read(find(tmp_path / "a.ckpt"))
        assert again.model.as_dict() == checkpoint.model.as_dict()
        torch.testing.assert_close(again.weights, dict(checkpoint.weights), rtol=0, atol=0)
        assert replace(again.training, optimizer={}) == replace(checkpoint.training, optimizer={})
        torch.testing.assert_close(again.training.optimizer, checkpoint.training.optimizer, rtol=0, atol=0)

    def test_it_is_known_by_its_contents(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        other = replace(checkpoint, weights={name: tensor + 1 for name, tensor in checkpoint.weights.items()})
        known = []
        for number, each in enumerate((checkpoint, other)):
            (tmp_path / f"{number}").mkdir()
            write_parts(path := tmp_path / f"{number}/a.ckpt", each, Ranks())
            known.append(read_with_identity(path)[0])
        assert known[0]["sha256"] != known[1]["sha256"]
        assert [who["name"] for who in known] == ["0/a", "1/a"]

    def test_one_command_makes_it_one_file(self, checkpoint: Checkpoint, tmp_path: Path, refusal) -> None:
        write_parts(tmp_path / "a.ckpt", checkpoint, Ranks())
        main(["consolidate", str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")])
        again = read(tmp_path / "b.ckpt")
        torch.testing.assert_close(again.training.optimizer, checkpoint.training.optimizer, rtol=0, atol=0)
        main(["consolidate", str(tmp_path / "a.ckpt"), str(tmp_path / "c.ckpt"), "--weights-only"])
        again = read(tmp_path / "c.ckpt")
        torch.testing.assert_close(again.weights, dict(checkpoint.weights), rtol=0, atol=0)
        assert again.training is None
        assert "b.ckpt exists" in refusal(main, ["consolidate", str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")])

    @pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "checkpoint.json"])
    @pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
    def test_damage_is_refused_by_name(self, name: str, how: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
        write_parts(tmp_path / "a.ckpt", checkpoint, Ranks())
        file = tmp_path / "a.ckpt" / name
        data = bytearray(file.read_bytes())
        if how == "flipped":
            data[len(data) // 2 if name != "checkpoint.json" else 0] ^= 1
        file.write_bytes(data if how == "flipped" else data[: len(data) // 2])
        if how == "missing":
            file.unlink()
        with pytest.raises(CheckpointError, match=r"a\.ckpt") as refused:
            read(tmp_path / "a.ckpt")
        assert name in str(refused.value) or (name, how) == ("checkpoint.json", "missing")

    def test_code_in_the_metadata_is_refused(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        write_parts(tmp_path / "a.ckpt", checkpoint, Ranks())
        metadata = tmp_path / "a.ckpt/.metadata"
        metadata.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
        about = tmp_path / "a.ckpt/checkpoint.json"
        tree = json.loads(about.read_text())
        data = metadata.read_bytes()
        tree["files"][".metadata"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        about.write_text(json.dumps(tree))
        verify_parts(tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match="contains code"):
            read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_of_any_python_is_not_code(module: str) -> None:
    pickled = f"c{module}\nPosixPath\n(S'a'\ntR.".encode()
    assert _Plain(io.BytesIO(pickled)).load() == Path("a")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(kept: float, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write(path, checkpoint)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept if kept >= 1 or not kept else kept * len(data))])
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read(path)


def test_a_flipped_byte_in_a_tensor_is_noticed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write(path, checkpoint)
    data = bytearray(path.read_bytes())
    weight = checkpoint.weights["token_embedding.weight"].numpy().tobytes()
    data[bytes(data).index(weight) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged"):
        read(path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hacked",)


def test_a_pickle_that_carries_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "gptstar", "x": Malicious()}, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt is refused, because its pickle contains code \((posix|os)\.system\)"
    ):
        read(tmp_path / "a.ckpt")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("content", [{"a": torch.ones(2)}, [1, 2], {"format": "gptstar", "format_version": 99}])
def test_other_files_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"none\.ckpt: No such file"):
        read(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("branch", "key", "value", "says"),
    [
        ("model", "positions", "alibi2", "model.positions=alibi2 is not known"),
        ("model", "gelu", "swish", "model.gelu=swish"),
        ("model", "n_layers", 3.5, "model.n_layers=3.5"),
        ("model", "n_layers", 10**9, "model.n_layers=1000000000 does not fit"),
        ("model", "n_heads", 10**9, "is [66, 22], not"),
        ("model", "n_vocab", None, "model.n_vocab=None"),
        ("model", "windows", 3, "model.windows is not a key"),
        ("training", "step", -1, "training.step=-1"),
        ("training", "settings", {"batch_tokens": "x" * 9}, "batch_tokens=x"),
        ("training", "data", {"corpora": [1]}, "lacks a value that its format requires"),
        ("weights", "norm.weight", torch.ones(3), "norm.weight is [3], not [22]"),
        ("weights", "norm.weight", torch.ones(1).expand(22), "norm.weight has more numbers than the file holds"),
        (None, "format_version", torch.tensor(1), "has format tensor(1)"),
        (None, "tokenizer", 3, "tokenizer"),
    ],
)
def test_values_are_checked_as_a_configurations_are(
    branch: str | None, key: str, value: object, says: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    write(tmp_path / "a.ckpt", checkpoint)
    tree = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (tree[branch] if branch else tree)[key] = value
    torch.save(tree, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*" + re.escape(says)):
        read(tmp_path / "a.ckpt")


def test_weights_of_another_shape_are_refused(checkpoint: Checkpoint) -> None:
    other = replace(checkpoint.model, n_layers=3)
    with pytest.raises(CheckpointError, match="don't fit"):
        replace(checkpoint, model=other).build()


def test_a_write_that_fails_leaves_the_old_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write(path, checkpoint)
    before = path.read_bytes()
    code = f"""
import resource, signal
from pathlib import Path
from gptstar.checkpoint.format import write
from gptstar.checkpoint.read import read
from gptstar.errors import CheckpointError
checkpoint = read(Path({str(path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    write(Path({str(path)!r}), checkpoint)
except CheckpointError as error:
    print(error)
"""
    assert hasattr(resource, "RLIMIT_FSIZE")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "can't write" in done.stdout
    assert "is unchanged" in done.stdout
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
