"""AdamW, as in the GPT-3 paper."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gptstar.fields import BelowOne, Positive
from gptstar.model import GPT
from gptstar.training.optimizers.base import OPTIMIZERS, Optimizer


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True)
class AdamW(Optimizer):
    """AdamW, by default with the betas of the GPT-3 paper.

    Attributes:
        beta1: the decay of the gradient's running mean, the first moment.
        beta2: the decay of the squared gradient's running mean, the second moment.
        epsilon: the number added to the root of the second moment, to avoid dividing by 0.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; values: Brown et al., "Language Models
    are Few-Shot Learners", 2020, appendix B.
    """

    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    epsilon: Positive = 1e-8

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of PyTorch's AdamW."""
        return {"lr": self.learning_rate, "betas": (self.beta1, self.beta2), "eps": self.epsilon}

    def build(self, model: GPT) -> torch.optim.Optimizer:
        """Build PyTorch's fused AdamW."""
        return torch.optim.AdamW(self.groups(model), fused=True, **self.options)

    def moments(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Name two moments for every parameter."""
        return {name: ("exp_avg", "exp_avg_sq") for name, _ in model.named_parameters()}
