"""The optimizer over groups of parameters, and its state by parameter name."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from gptstar.errors import CheckpointError, ConfigError
from gptstar.model import GPT
from gptstar.training.muon import MuonAdamW

FUSED = ".qkv.weight"
"""Queries', keys' and values' projections, one below the other."""

Algorithm = Literal["adamw", "muon", "adamw_8bit"]
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",), "adamw_8bit": ("state1", "state2")}
"""What an algorithm keeps of a parameter, in its shape."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as in the GPT-3 paper, with small moments or with Muon on the blocks' matrices.

    Attributes:
        learning_rate: the peak; the schedule scales it. It means the same for all algorithms, but for `adjust_lr`.
        algorithm: `adamw`; `muon` on the matrices in blocks and AdamW on the rest; `adamw_8bit`, AdamW that keeps its
            moments in 8 bits.
        beta1, beta2, epsilon: of AdamW.
        weight_decay: decoupled, of all.
        momentum: of Muon.
        newton_schulz: what Muon orthogonalises in; `auto` is float32 where the run computes in float32.
        iterations: of Muon's orthogonalising; five are PyTorch's, four begin closer to the end and cost a fifth less.
        adjust_lr: how large Muon's steps are: as AdamW's in every matrix, or in the proportions in which it was
            published, `original`, which are half of that where an MLP of four times the width is projected down.
        heads_apart: Muon takes each head's queries, keys and values for matrices of their own.
        gradient_clipping: largest norm of the whole gradient; null for none.
        decay_final_norm: also decay the last LayerNorm, as the original GPT* did.

    Sources: Brown et al., "Language Models are Few-Shot Learners", 2020, appendix B; Dettmers et al., "8-bit optimizers
    via block-wise quantization", 2022.
    """

    learning_rate: float
    algorithm: Algorithm = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    momentum: float = 0.95
    newton_schulz: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    iterations: Literal[4, 5] = 5
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    heads_apart: bool = False
    gradient_clipping: float | None = 1.0
    decay_final_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "gradient_clipping"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"optimizer.{name}={value} is not above 0 and finite")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} is not in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"optimizer.weight_decay={self.weight_decay} is not 0 or above, and finite")
        if self.algorithm == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise ConfigError("optimizer=adamw_8bit needs bitsandbytes: pip install 'gptstar[8bit]'")

    def resolved(self, precision: str) -> Self:
        """The same for a run that computes in `precision`, with nothing left to derive."""
        if self.newton_schulz != "auto":
            return self
        return replace(self, newton_schulz="float32" if precision == "float32" else "bfloat16")


def decays(model: nn.Module, *, final_norm: bool) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Each parameter's name, and whether weight decay applies: to matrices and the token embedding, no others.

    What a parameter is follows from the module that owns it and its leaf name, not from its shape.
    """
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear) and leaf == "weight"
            decayed = matrix or module_name == "token_embedding" or (final_norm and module_name == "norm")
            yield f"{module_name}.{leaf}", parameter, decayed


def build_optimizer(model: GPT, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with one group that decays and one that does not; with Muon's groups before them.

    Args:
        config: resolved.
    """
    parameters = list(decays(model, final_norm=config.decay_final_norm))
    groups: list[dict[str, Any]] = []
    if config.algorithm == "muon":
        matrices = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        of_muon = {
            "momentum": config.momentum,
            "newton_schulz": getattr(torch, config.newton_schulz),
            "iterations": config.iterations,
            "adjust_lr": config.adjust_lr,
            "width": model.config.d_model,
        }
        for fused, parts in ((False, 1), (True, 3 * model.config.n_heads if config.heads_apart else 3)):
            names = [name for name in matrices if name.endswith(FUSED) == fused]
            groups.append(
                {
                    "params": [matrices[name].weight for name in names],
                    "weight_decay": config.weight_decay,
                    "parts": parts,
                    **of_muon,
                }
            )
        parameters = [each for each in parameters if each[0] not in matrices]
    groups += [
        {"params": [p for _, p, decayed in parameters if decayed], "weight_decay": config.weight_decay},
        {"params": [p for _, p, decayed in parameters if not decayed], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
    }
    if config.algorithm == "adamw_8bit":
        from bitsandbytes import optim  # an extra, and seconds to import

        in_8_bits: torch.optim.Optimizer = optim.AdamW8bit(groups, **options)  # type: ignore[attr-defined, no-untyped-call]
        return in_8_bits
    kind = MuonAdamW if config.algorithm == "muon" else torch.optim.AdamW
    return kind(groups, fused=True, **options)


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state by parameter name, independent of groups and their order."""
    return {
        name: {key: torch.as_tensor(value) for key, value in optimizer.state[p].items()}  # bitsandbytes' step is an int
        for name, p in model.named_parameters()
        if p in optimizer.state
    }


def load_state_by_name(
    optimizer: torch.optim.Optimizer, model: nn.Module, states: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Restore what `state_by_name` gave; learning rate and decay stay those of the optimizer as built.

    Raises:
        CheckpointError: the state is of other parameters.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    if states and (differing := set(names.values()) ^ set(states)):
        raise CheckpointError(
            f"the optimizer's state is of another model: {sorted(differing)[0]} is only in one of them"
        )
    in_8_bits = not isinstance(optimizer, torch.optim.AdamW)
    of_muon = {p for group in optimizer.param_groups if "parts" in group for p in group["params"]}
    for parameter, name in names.items():
        for key in MOMENTS["adamw_8bit" if in_8_bits else "muon" if parameter in of_muon else "adamw"]:
            if states and (key not in states[name] or states[name][key].shape != parameter.shape):
                raise CheckpointError(f"the optimizer's {key} of {name} is missing or of another shape")
    tree = optimizer.state_dict()
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    tree["state"] = {index: dict(states[name]) for index, name in enumerate(ordered) if name in states}
    optimizer.load_state_dict(tree)
    if in_8_bits:
        for state in optimizer.state.values():
            state["step"] = int(state["step"])
