from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.checkpoint.format import write
from gptstar.checkpoint.legacy import read_legacy
from gptstar.checkpoint.read import read
from gptstar.cli import main
from gptstar.errors import CheckpointError
from gptstar.model import GPT
from gptstar.model.positions import POSITIONS, Alibi
from gptstar.training.optimizers import state_by_name
from gptstar.training.optimizers.adamw import AdamW
from support.models import legacy_state


@pytest.mark.parametrize("name", ["alibi-parallel-0", "alibi-parallel-full-1"])
def test_logits_and_loss_are_the_original_models(name: str, shared: Path, tmp_path: Path) -> None:
    main(["import", str(shared / f"legacy/{name}.pth.tar"), str(tmp_path / "out.ckpt")])
    model = gptstar.load(tmp_path / "out.ckpt")
    expected = torch.load(shared / f"legacy/{name}.expected.pt", weights_only=True)
    tokens = expected["tokens"]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), expected["logits"], atol=1e-5, rtol=0)
        loss = model(tokens[:, :-1], tokens[:, 1:]).mean()
    torch.testing.assert_close(loss, expected["loss"], atol=1e-5, rtol=0)
    assert (model.config.n_heads, model.config.residual, model.config.positions) == (4, "parallel", Alibi())


def test_the_optimizers_state_comes_along(shared: Path) -> None:
    path = shared / "legacy/alibi-parallel-full-1.pth.tar"
    checkpoint = read_legacy(path)
    theirs = torch.load(path, weights_only=True)
    assert checkpoint.training.step == theirs["step"] == 3
    model = checkpoint.build()
    adamw = AdamW(learning_rate=6e-4)
    optimizer = adamw.build(model)
    adamw.restore(optimizer, model, checkpoint.training.optimizer)
    state = state_by_name(optimizer, model)
    names = [n for n in theirs["state_dict"] if not n.endswith(("slopes", "mask")) and n != "lm_head.weight"]
    by_name = {name: theirs["optimizer"]["state"][index] for index, name in enumerate(names)}
    assert torch.equal(state["token_embedding.weight"]["exp_avg"], by_name["wte.weight"]["exp_avg"])
    qkv = [by_name[f"blocks.1.attn.{part}.weight"]["exp_avg_sq"] for part in ("query", "key", "value")]
    assert torch.equal(state["blocks.1.attention.qkv.weight"]["exp_avg_sq"], torch.cat(qkv))
    assert {float(each["step"]) for each in state.values()} == {3.0}


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_every_variant_is_recognised(residual: str, positions: str, tmp_path: Path) -> None:
    state = legacy_state(residual, positions)
    torch.save(state, tmp_path / "a.pth.tar")
    checkpoint = read_legacy(tmp_path / "a.pth.tar", n_heads=None if positions == "alibi" else 5)
    config = checkpoint.model
    assert (config.residual, POSITIONS.name_of(config.positions)) == (residual, positions)
    assert (config.n_heads, config.d_ff) == (5, 29)
    assert config.n_ctx == (23 if positions == "learned" else None)
    assert isinstance(checkpoint.build(), GPT)
    value = checkpoint.weights["blocks.2.attention.qkv.weight"][40:]
    assert torch.equal(value, state["blocks.2.attn.value.weight"])


def refused(tmp_path: Path, state: object, **options: int) -> str:
    torch.save(state, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError) as error:
        read_legacy(tmp_path / "a.pth.tar", **options)
    assert "a.pth.tar" in str(error.value)
    return str(error.value)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    state = legacy_state("parallel", "alibi")
    assert "contradicts the 5 ALiBi slopes" in refused(tmp_path, state, n_heads=4)
    assert "give --heads" in refused(tmp_path, legacy_state("parallel", "learned"))
    assert "do not divide" in refused(tmp_path, legacy_state("parallel", "learned"), n_heads=3)
    assert "lm_head.weight differs" in refused(tmp_path, state | {"lm_head.weight": torch.zeros(97, 20)})
    assert "not the paper's" in refused(tmp_path, state | {"blocks.0.attn.slopes": torch.rand(5)})
    assert "extra is not a tensor" in refused(tmp_path, state | {"extra": torch.zeros(1)})
    assert "not in a layout of the original" in refused(tmp_path, [1, 2])
    assert "not in a layout of the original" in refused(tmp_path, {"model": {}})
    many = {"blocks.999999999.mlp.fc1.bias": state["blocks.1.mlp.fc1.bias"]}
    assert "n_layers=1000000000 does not fit" in refused(tmp_path, state | many)
    del state["blocks.1.mlp.fc1.bias"]
    assert "the weights lack blocks.1.mlp.up.bias" in refused(tmp_path, state)


def test_the_command_overwrites_nothing_and_checks_the_tokenizer(shared: Path, tmp_path: Path, refusal) -> None:
    source, out = str(shared / "legacy/alibi-parallel-0.pth.tar"), tmp_path / "out.ckpt"
    tokenizer = str(shared / "tokenizer/gpt2.json")
    assert "50,257 tokens, the model 512" in refusal(main, ["import", source, str(out), "--tokenizer", tokenizer])
    out.write_text("mine")
    assert "is not overwritten" in refusal(main, ["import", source, str(out)])
    assert out.read_text() == "mine"
    assert "No such file" in refusal(main, ["import", "none.pth.tar", str(tmp_path / "new.ckpt")])


def test_our_own_reader_points_to_the_import(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gptstar import"):
        read(shared / "legacy/alibi-parallel-0.pth.tar")
    write(tmp_path / "b.ckpt", read_legacy(shared / "legacy/alibi-parallel-0.pth.tar"))
    assert read(tmp_path / "b.ckpt").training is None
