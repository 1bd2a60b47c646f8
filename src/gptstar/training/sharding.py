"""Sharding of a model over ranks (FSDP2), and conversion between full tensors and shards."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptstar.checkpoint.format import OptimizerState
from gptstar.errors import CheckpointError
from gptstar.model import GPT

if TYPE_CHECKING:  # the import takes half a second, which would delay `--help`
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: GPT, mesh: "DeviceMesh", *, bf16_weights: bool = False) -> None:
    """Shard every parameter over the ranks; a block's parameters are gathered while it computes, and then freed.

    Args:
        model: the full model, the same on all ranks.
        mesh: a one-dimensional mesh of all ranks.
        bf16_weights: whether to gather parameters in bfloat16; gradients are still summed over ranks in float32.

    Source: Zhao et al., "PyTorch FSDP", 2023.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if bf16_weights else MixedPrecisionPolicy()
    )
    for module in (*model.blocks, model):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        if mesh.device_type == "cpu":  # PyTorch 2.8's gloo returns the sum instead of the average
            sharded.set_force_sum_reduction_for_comms(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a full tensor from the shards on all ranks; all ranks must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, which shares its memory; a tensor that is not sharded returns itself."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return this rank's shard of a full tensor if it has the shape of a sharded parameter; otherwise the tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value


@torch.no_grad()
def fill(model: GPT, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load full tensors by name into a sharded model, one at a time.

    Raises:
        CheckpointError: the weights don't fit the model.
    """
    parameters = dict(model.named_parameters())
    for name, value in weights:
        parameter = parameters.pop(name, None)
        if parameter is None or parameter.shape != value.shape:
            raise CheckpointError(f"the weights don't fit the model they came with ({name})")
        parameter.copy_(part_like(parameter, value))
    if parameters:
        raise CheckpointError(f"the weights don't fit the model they came with (no {next(iter(parameters))})")


def parts_of(states: OptimizerState, model: GPT) -> OptimizerState:
    """Return this rank's shards of the optimizer's state."""
    parameters = dict(model.named_parameters())
    return {
        name: {
            key: part_like(parameters[name], value).clone() if name in parameters else value
            for key, value in state.items()
        }
        for name, state in states.items()
    }


def load_sharded(path: Path, model: GPT) -> tuple[OptimizerState, dict[str, Tensor]]:
    """Read this rank's shards of a sharded checkpoint into a model.

    Returns:
        The shards of the optimizer's state, and those of the averaged weights, which are empty if there are none.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit the model.
    """
    from gptstar.checkpoint.parts import AVERAGED, load_parts, tensors_in

    parameters = dict(model.named_parameters())
    states: OptimizerState = {}
    averaged: dict[str, Tensor] = {}
    for name, about in tensors_in(path).items():
        kind, _, rest = name.partition(".")
        parameter, _, key = rest.rpartition(".")
        if name.startswith(AVERAGED) and rest in parameters:
            averaged[rest] = torch.zeros_like(parameters[rest].detach())
        elif kind == "optimizer":
            like = parameters.get(parameter)
            in_parts = like is not None and like.shape == about.size
            states.setdefault(parameter, {})[key] = (
                torch.zeros_like(like.detach()) if in_parts else torch.zeros(about.size)  # type: ignore[union-attr]
            )
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"{AVERAGED}{name}": value for name, value in averaged.items()}
    tensors |= {f"optimizer.{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    load_parts(path, tensors)
    return states, averaged
