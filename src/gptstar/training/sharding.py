"""A model in parts, one on each rank (FSDP2), and whole tensors from and to the parts."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gptstar.model import GPT


def shard(model: GPT, mesh: DeviceMesh, *, bf16_weights: bool = False) -> None:
    """Leave this rank its part of every parameter; a block's are gathered when it computes, and given up after it.

    Args:
        model: the same on all ranks.
        mesh: one-dimensional, of all ranks.
        bf16_weights: gather parameters in bfloat16; gradients are still summed over ranks in float32.

    Source: Zhao et al., "PyTorch FSDP", 2023.
    """
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if bf16_weights else MixedPrecisionPolicy()
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor whose parts all ranks have; all have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors, gathered one by one; those in parts are then on the CPU, and only where they are to be kept."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if keep:
            gathered[name] = full.cpu() if full is not tensor else full
    return gathered


def part_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor as large as a parameter; of any other, as of the whole one, a copy."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value.clone()
