"""AdamW with its moments in 8 bits."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import nn

from gptstar.errors import ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.training.optimizers.adamw import AdamW
from gptstar.training.optimizers.base import OPTIMIZERS, States
from gptstar.training.optimizers.muon import matrix_params

QUANTISED_BYTES = 2 + 8 / 256
"""Bytes of a parameter's two moments: bitsandbytes keeps a float32 scale for each 256 of either."""


@OPTIMIZERS.register("adamw_8bit")
@dataclass(frozen=True)
class AdamW8bit(AdamW):
    """AdamW that keeps its moments in 8 bits, by bitsandbytes: a quarter of their memory.

    Source: Dettmers et al., "8-bit optimizers via block-wise quantization", 2022.
    """

    is_shardable: ClassVar[bool] = False  # it steps whole parameters, each with the scales of its blocks

    def check_here(self) -> None:
        """See that bitsandbytes is installed.

        Raises:
            ConfigError: it is not.
        """
        if find_spec("bitsandbytes") is None:
            raise ConfigError("optimizer=adamw_8bit needs bitsandbytes: pip install 'gptstar[8bit]'")

    def build(self, model: GPT) -> torch.optim.Optimizer:
        """Build bitsandbytes' own."""
        from bitsandbytes import optim  # an extra, and seconds to import

        built: torch.optim.Optimizer = optim.AdamW8bit(self.groups(model), **self.options)  # type: ignore[attr-defined, no-untyped-call]
        return built

    def moments(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Two of every parameter, as bitsandbytes calls them."""
        return {name: ("state1", "state2") for name, _ in model.named_parameters()}

    def state_bytes(self, model: GPTConfig) -> int:
        """Count 8 bits for the moments of matrices and of the embedding; small parameters keep float32."""
        large = model.n_vocab * model.d_model + matrix_params(model)
        return 8 * model.n_params - int((8 - QUANTISED_BYTES) * large)

    def restore(self, built: torch.optim.Optimizer, model: nn.Module, states: States) -> None:
        """Restore, with the step as the integer that bitsandbytes counts.

        Raises:
            CheckpointError: the state is of other parameters.
        """
        super().restore(built, model, states)
        for state in built.state.values():
            state["step"] = int(state["step"])
