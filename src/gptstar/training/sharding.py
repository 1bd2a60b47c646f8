"""A model in parts, one on each rank (FSDP2), and whole tensors from and to the parts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptstar.checkpoint.format import OptimizerState
from gptstar.errors import CheckpointError
from gptstar.model import GPT

if TYPE_CHECKING:  # half a second, which `--help` and the parsing of a configuration need not wait
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: GPT, mesh: "DeviceMesh", *, bf16_weights: bool = False) -> None:
    """Leave this rank its part of every parameter; a block's are gathered when it computes, and given up after it.

    Args:
        model: the same on all ranks.
        mesh: one-dimensional, of all ranks.
        bf16_weights: gather parameters in bfloat16; gradients are still summed over ranks in float32.

    Source: Zhao et al., "PyTorch FSDP", 2023.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if bf16_weights else MixedPrecisionPolicy()
    )
    for module in (*model.blocks, model):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        if mesh.device_type == "cpu":  # PyTorch 2.8's gloo returns the sum where the average is asked for
            sharded.set_force_sum_reduction_for_comms(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor from the parts on all ranks; every rank has to call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, which shares its memory; a whole tensor is its own part."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor if it has the shape of a sharded parameter; any other as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value


@torch.no_grad()
def fill(model: GPT, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Give a model in parts its weights, whole tensors by name; one at a time is held.

    Raises:
        CheckpointError: they are another model's.
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
    """This rank's parts of the optimizer's state."""
    parameters = dict(model.named_parameters())
    return {
        name: {
            key: part_like(parameters[name], value).clone() if name in parameters else value
            for key, value in state.items()
        }
        for name, state in states.items()
    }


def load_sharded(path: Path, model: GPT) -> tuple[OptimizerState, dict[str, Tensor]]:
    """Read this rank's parts of a checkpoint in parts into a model.

    Returns:
        The parts of the optimizer's state, and those of the averaged weights, which are empty where there are none.

    Raises:
        CheckpointError: it is another model's, or damaged.
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
