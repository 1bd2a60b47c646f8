"""AdamW over two groups of parameters, and its state by parameter name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptstar.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as in the GPT-3 paper.

    Attributes:
        learning_rate: the peak; the schedule scales it.
        beta1, beta2, epsilon, weight_decay: of AdamW (decoupled).
        gradient_clipping: largest norm of the whole gradient; null for none.
        decay_final_norm: also decay the last LayerNorm, as the original GPT* did.

    Source: Brown et al., "Language Models are Few-Shot Learners", 2020, appendix B.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clipping: float | None = 1.0
    decay_final_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "gradient_clipping"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"optimizer.{name}={value} is not above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} is not in [0, 1)")
        if self.weight_decay < 0:
            raise ConfigError(f"optimizer.weight_decay={self.weight_decay} is negative")


def decays(model: nn.Module, *, final_norm: bool) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Each parameter's name, and whether weight decay applies: to matrices and the token embedding, no others.

    What a parameter is follows from the module that owns it and its leaf name, not from its shape.
    """
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear) and leaf == "weight"
            decayed = matrix or module_name == "token_embedding" or (final_norm and module_name == "norm")
            yield f"{module_name}.{leaf}", parameter, decayed


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with one group that decays and one that does not."""
    parameters = list(decays(model, final_norm=config.decay_final_norm))
    groups = [
        {"params": [p for _, p, decayed in parameters if decayed], "weight_decay": config.weight_decay},
        {"params": [p for _, p, decayed in parameters if not decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state by parameter name, independent of groups and their order."""
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


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
    for parameter, name in names.items():
        for key in ("exp_avg", "exp_avg_sq"):
            if states and (key not in states[name] or states[name][key].shape != parameter.shape):
                raise CheckpointError(f"the optimizer's {key} of {name} is missing or of another shape")
    tree = optimizer.state_dict()
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    tree["state"] = {index: dict(states[name]) for index, name in enumerate(ordered) if name in states}
    optimizer.load_state_dict(tree)
