"""AdamW with 8-bit moments."""

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
"""Bytes of a parameter's two moments, including one float32 scale per 256 values."""


@OPTIMIZERS.register("adamw_8bit")
@dataclass(frozen=True)
class AdamW8bit(AdamW):
    """AdamW that stores its moments in 8 bits with bitsandbytes, in a quarter of the memory.

    Source: Dettmers et al., "8-bit optimizers via block-wise quantization", 2022.
    """

    is_shardable: ClassVar[bool] = False  # bitsandbytes can't update shards

    def check_here(self) -> None:
        """Check that bitsandbytes is installed.

        Raises:
            ConfigError: bitsandbytes is missing.
        """
        if find_spec("bitsandbytes") is None:
            raise ConfigError("optimizer=adamw_8bit needs bitsandbytes: pip install 'gptstar[8bit]'")

    def build(self, model: GPT) -> torch.optim.Optimizer:
        """Build bitsandbytes' AdamW8bit."""
        from bitsandbytes import optim  # an optional dependency that takes seconds to import

        built: torch.optim.Optimizer = optim.AdamW8bit(self.groups(model), **self.options)  # type: ignore[attr-defined, no-untyped-call]
        return built

    def moments(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Name two moments for every parameter, by bitsandbytes' names."""
        return {name: ("state1", "state2") for name, _ in model.named_parameters()}

    def state_bytes(self, model: GPTConfig) -> int:
        """Count 8 bits for each moment of matrices and of the embedding; small parameters keep float32."""
        large = model.n_vocab * model.d_model + matrix_params(model)
        return 8 * model.n_params - int((8 - QUANTISED_BYTES) * large)

    def restore(self, built: torch.optim.Optimizer, model: nn.Module, states: States) -> None:
        """Restore the state, with the step as an integer, which bitsandbytes requires.

        Raises:
            CheckpointError: the state belongs to other parameters.
        """
        super().restore(built, model, states)
        for state in built.state.values():
            state["step"] = int(state["step"])
