"""Muon against PyTorch's, where both can; what is fused, and what goes on."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptstar.checkpoint.format import write
from gptstar.checkpoint.read import read
from gptstar.model import GPT, GPTConfig
from gptstar.training.optimizers.muon import Muon, MuonAdamW
from gptstar.training.optimizers.newton_schulz import COEFFICIENTS, orthogonalised
from support.runs import assert_goes_on_bitwise, run_here

Overrides = Callable[..., list[str]]

BLOCK = "blocks.0"
SHAPES = {"wide": (24, 40), "tall": (40, 24), "square": (32, 32)}


def pytorchs(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Muon:
    return torch.optim.Muon(
        parameters, lr=learning_rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )


def ours(parameters: list[nn.Parameter], learning_rate: float, parts: int, **given: Any) -> MuonAdamW:
    of_muon = {"parts": parts, "momentum": 0.95, "newton_schulz": torch.bfloat16, "iterations": 5}
    of_muon |= {"adjust_lr": "match_rms_adamw", "width": 32, **given}
    return MuonAdamW([{"params": parameters, "weight_decay": 0.1, **of_muon}], lr=learning_rate, fused=True)


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for each in gradients:
        for parameter, gradient in zip(parameters, each, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def stepped(shape: tuple[int, int], *builds: Build) -> tuple[Tensor, list[nn.Parameter]]:
    """A matrix, and what five steps by the same gradients make of it with each optimizer."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    gradients = [[torch.randn(shape)] for _ in range(5)]
    found = [nn.Parameter(start.clone()) for _ in builds]
    for build, parameter in zip(builds, found, strict=True):
        steps(build([parameter]), [parameter], gradients)
    return start, found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_pytorchs_muon(shape: tuple[int, int]) -> None:
    start, (mine, theirs) = stepped(shape, lambda p: ours(p, 0.02, parts=1), lambda p: pytorchs(p, 0.02))
    assert not torch.allclose(mine, start, atol=0.01)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_its_published_scale_is_pytorchs_too(shape: tuple[int, int]) -> None:
    """Where theirs has the rate that is AdamW's step in a square matrix of the width, and decays nothing."""

    def published(parameters: list[nn.Parameter]) -> MuonAdamW:
        optimizer = ours(parameters, 0.02, parts=1, adjust_lr="original", width=64)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        return optimizer

    _, (mine, theirs) = stepped(
        shape, published, lambda p: torch.optim.Muon(p, lr=0.02 * 0.2 * 8, weight_decay=0.0, momentum=0.95)
    )
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("parts", [3, 12])
def test_parts_of_a_fused_matrix_are_matrices_of_their_own(parts: int) -> None:
    torch.manual_seed(0)
    start = torch.randn(96, 32)
    gradients = [torch.randn(96, 32) * torch.tensor([1.0, 5.0, 0.1]).repeat_interleave(32)[:, None] for _ in range(5)]
    fused, apart = nn.Parameter(start.clone()), [nn.Parameter(each.clone()) for each in start.chunk(parts)]
    steps(ours([fused], 0.02, parts), [fused], [[each] for each in gradients])
    steps(pytorchs(apart, 0.02), apart, [list(each.chunk(parts)) for each in gradients])
    atol = 0 if parts == 3 else 1e-4  # products of many small matrices at once round otherwise
    torch.testing.assert_close(fused, torch.cat([each.detach() for each in apart]), rtol=0, atol=atol)


def test_heads_apart_are_the_rows_that_a_head_computes_with() -> None:
    """What does not pass through a head has no gradient there, and how large a head's is moves no other's step."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(1, 24, 4, 97))
    attention = model.blocks[0].attention
    with torch.no_grad():
        attention.out.weight[:, 6 * 2 : 6 * 3] = 0  # nobody listens to the third head
    tokens = torch.randint(0, 97, (2, 9))
    model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    gradient = attention.qkv.weight.grad.view(3, 4, 6, 24)
    assert [not each.any() for each in gradient.transpose(0, 1)] == [False, False, True, False]

    config = Muon(learning_rate=0.01, heads_apart=True, newton_schulz="float32")
    before, found = attention.qkv.weight.detach().clone(), []
    for times in (1.0, 10.0):
        optimizer = config.build(model)
        with torch.no_grad():
            attention.qkv.weight.copy_(before)
        scaled = gradient.clone()
        scaled[1, 1] *= times  # the second head's keys
        attention.qkv.weight.grad = scaled.view_as(before)
        optimizer.step()
        found.append(attention.qkv.weight.detach().clone())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], before, atol=1e-4)


def test_what_is_configured_gets_to_the_steps() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(1, 24, 4, 97))
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters() if p.dim() == 2}
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def sizes(**given: Any) -> dict[str, float]:
        model.load_state_dict(start)
        config = Muon(learning_rate=0.01, weight_decay=0.0, **given)
        optimizer = config.build(model)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients.get(name)
        optimizer.step()
        change = {name: p.detach() - start[name] for name, p in model.named_parameters()}
        return {name: x.square().mean().sqrt().item() for name, x in change.items() if name.startswith(BLOCK)}

    alike, published = sizes(), sizes(adjust_lr="original")
    assert published[f"{BLOCK}.mlp.down.weight"] == pytest.approx(alike[f"{BLOCK}.mlp.down.weight"] / 2, rel=1e-3)
    for name in (f"{BLOCK}.{each}.weight" for each in ("attention.qkv", "attention.out", "mlp.up")):
        assert published[name] == pytest.approx(alike[name], rel=1e-3) != 0
    assert sizes(iterations=4) != alike
    assert sizes(heads_apart=True)[f"{BLOCK}.attention.qkv.weight"] != alike[f"{BLOCK}.attention.qkv.weight"]


@pytest.mark.parametrize("iterations", [4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(dtype: torch.dtype, iterations: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 64, 32)
    left, values, right = torch.linalg.svd(orthogonalised(matrices, dtype, iterations).float(), full_matrices=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    theirs = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(left @ right, theirs[0] @ theirs[2], rtol=0, atol=0.05)  # the directions stay


def test_four_iterations_begin_closer_to_the_end() -> None:
    """Of a matrix with many singular values of a size, nearly as far as five from where those begin."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(2, 256, 256), full_matrices=False)
    matrices = left @ (torch.logspace(0, -3, 256)[:, None] * right)
    least = {n: torch.linalg.svdvals(orthogonalised(matrices, torch.float32, n)).min().item() for n in (4, 5)}
    a, _, _ = COEFFICIENTS
    assert least[5] / a < 0.5 * least[4]
    assert least[4] > 0.65 * least[5]


@pytest.mark.parametrize("iterations", [4, 5])
@pytest.mark.parametrize("shape", [(3, 16, 67), (3, 67, 16), (2, 24, 29)])
@pytest.mark.parametrize("smallest", [1e-1, 1e-5])
def test_iterations_in_float32_are_those_in_float64(shape: tuple[int, ...], smallest: float, iterations: int) -> None:
    """Wide matrices take another way there, which squares singular values."""
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, math.log10(smallest), values.shape[-1], dtype=torch.float64)
    matrices = left @ (values[:, None] * right)
    theirs = orthogonalised(matrices, torch.float64, iterations)
    assert (orthogonalised(matrices, torch.float32, iterations) - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("iterations", [4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_no_gradient_there_is_no_step(dtype: torch.dtype, iterations: int) -> None:
    assert not orthogonalised(torch.zeros(2, 16, 64), dtype, iterations).any()


def test_muon_has_the_matrices_in_blocks_and_adamw_the_rest() -> None:
    model = GPT(GPTConfig(2, 24, 2, 97, positions="learned", n_ctx=8))
    optimizer = Muon(learning_rate=0.01).build(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    single, fused, decaying, others = ([names[p] for p in group["params"]] for group in optimizer.param_groups)
    assert fused == [f"blocks.{block}.attention.qkv.weight" for block in (0, 1)]
    assert {name.split(".", 2)[2] for name in single} == {"attention.out.weight", "mlp.up.weight", "mlp.down.weight"}
    assert decaying == ["token_embedding.weight"]
    assert all("norm" in name or name.endswith("bias") or "position" in name for name in others)
    assert len(names) == len(single) + len(fused) + len(decaying) + len(others)

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = torch.randint(0, 97, (2, 9))
    model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    optimizer.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    kept = {name: set(optimizer.state[parameter]) for parameter, name in names.items()}
    assert all(keys == {"step", "momentum_buffer"} for name, keys in kept.items() if name in single + fused)
    assert kept["token_embedding.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    for parameter, name in names.items():
        if name in single + fused:  # of the size of an AdamW step
            change = parameter.detach() - before[name] * (1 - 0.01 * 0.1)
            assert change.square().mean().sqrt() == pytest.approx(0.01 * 0.2, rel=0.35), name


MUON = ("optimizer=muon", "optimizer.learning_rate=0.01")


def test_a_run_with_muon_goes_on_bitwise(overrides: Overrides, tmp_path: Path) -> None:
    first = assert_goes_on_bitwise(overrides, tmp_path, *MUON)
    assert set(first.training.optimizer["blocks.0.mlp.up.weight"]) == {"step", "momentum_buffer"}


def test_a_checkpoint_older_than_an_option_was_made_without_it(
    overrides: Overrides, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    words = (*MUON, "schedule.decay_until=20")
    run_here(overrides(*words, "total_steps=6"))
    checkpoint = read(tmp_path / "run/last.ckpt")
    assert checkpoint.training is not None
    settings = {key: at for key, at in checkpoint.training.settings.items() if key != "optimizer.heads_apart"}
    assert len(settings) == len(checkpoint.training.settings) - 1
    write(tmp_path / "run/last.ckpt", replace(checkpoint, training=replace(checkpoint.training, settings=settings)))
    other = overrides(*words, "total_steps=8", "optimizer.heads_apart=true")
    assert "optimizer.heads_apart (checkpoint: False, now: True)" in refusal(run_here, other)
    run_here(overrides(*words, "total_steps=8"))
    assert read(tmp_path / "run/last.ckpt").training.step == 8


def test_another_algorithms_checkpoint_is_refused(
    overrides: Overrides, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    run_here(overrides("total_steps=6", "schedule.decay_until=20", output="adamw"))
    more = (*MUON[:1], "schedule.decay_until=20", f"resume={tmp_path / 'adamw'}")
    assert "optimizer.algorithm (checkpoint: adamw, now: muon)" in refusal(run_here, overrides(*more))
