"""The interface of all optimizers, and their state by parameter name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gptstar.choices import Choices
from gptstar.errors import CheckpointError
from gptstar.fields import AtLeastZero, Positive, Shown, check_ranges
from gptstar.model import GPT, GPTConfig

States = Mapping[str, Mapping[str, Tensor]]
"""An optimizer's state by parameter name, such as `{"norm.weight": {"exp_avg": …}}`."""


@dataclass(frozen=True)
class Optimizer:
    """The configuration of an optimizer. Registered subclasses can be chosen by their name.

    Attributes:
        learning_rate: the peak learning rate, which the schedule scales.
        weight_decay: the decoupled weight decay of matrices and the token embedding.
        gradient_clipping: the largest norm of the whole gradient; None for no limit.
        decay_final_norm: whether to decay the last LayerNorm too, as the original GPT* did.
    """

    learning_rate: Annotated[Positive, Shown.ALWAYS]
    weight_decay: AtLeastZero = 0.1
    gradient_clipping: Positive | None = 1.0
    decay_final_norm: bool = False

    is_shardable: ClassVar[bool] = True
    """Whether the optimizer can update parameters that are sharded over ranks (FSDP)."""

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer.")

    def resolved(self, precision: str) -> Self:  # some depend on it
        """Return the optimizer with all derived values filled in, for a run that computes in `precision`."""
        return self

    def check_here(self) -> None:
        """Check that this machine has the packages that the optimizer needs.

        Raises:
            ConfigError: a package is missing; the message says what to install.
        """

    def build(self, model: GPT) -> torch.optim.Optimizer:
        """Build the optimizer for a model's parameters; the learning rate of every group is set at each step."""
        raise NotImplementedError

    def moments(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Name each parameter's state tensors, which have the parameter's shape; a resume checks them."""
        return {}

    def state_bytes(self, model: GPTConfig) -> int:
        """Count the bytes of the state for a full model; by default, two float32 moments per parameter."""
        return 8 * model.n_params

    def restore(self, built: torch.optim.Optimizer, model: nn.Module, states: States) -> None:
        """Restore the result of `state_by_name`; learning rate and weight decay remain those of the configuration.

        Raises:
            CheckpointError: the state belongs to other parameters.
        """
        names = {parameter: name for name, parameter in model.named_parameters()}
        moments = self.moments(model) if states else {}
        if differing := (set(states) - set(names.values())) | (set(moments) - set(states)):
            raise CheckpointError(
                f"the optimizer's state belongs to another model: {sorted(differing)[0]} is in only one of them"
            )
        for parameter, name in names.items():
            for key in moments.get(name, ()):
                if key not in states[name] or states[name][key].shape != parameter.shape:
                    raise CheckpointError(f"the optimizer's {key} of {name} is missing or has another shape")
        tree = built.state_dict()
        ordered = [names[parameter] for group in built.param_groups for parameter in group["params"]]
        tree["state"] = {index: dict(states[name]) for index, name in enumerate(ordered) if name in states}
        built.load_state_dict(tree)

    def groups(self, model: nn.Module, without: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
        """Return two groups of parameters: those with weight decay, and those without.

        Args:
            without: the names of parameters to leave out, because they are in other groups.
        """
        parameters = [each for each in decays(model, final_norm=self.decay_final_norm) if each[0] not in without]
        return [
            {"params": [p for _, p, decayed in parameters if decayed], "weight_decay": self.weight_decay},
            {"params": [p for _, p, decayed in parameters if not decayed], "weight_decay": 0.0},
        ]


OPTIMIZERS: Choices[Optimizer] = Choices("optimizer", tag="algorithm", before="adamw")


def decays(model: nn.Module, *, final_norm: bool) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield each parameter with its name, and whether weight decay applies: only to matrices and the token embedding.

    The module that owns a parameter, and the last part of its name, decide this, not its shape.
    """
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear) and leaf == "weight"
            decayed = matrix or module_name == "token_embedding" or (final_norm and module_name == "norm")
            yield f"{module_name}.{leaf}", parameter, decayed


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's state by parameter name, independent of groups and their order."""
    return {
        name: {key: torch.as_tensor(value) for key, value in optimizer.state[p].items()}  # bitsandbytes' step is an int
        for name, p in model.named_parameters()
        if p in optimizer.state
    }
