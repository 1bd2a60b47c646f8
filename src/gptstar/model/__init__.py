"""GPT* and its relatives in plain PyTorch: no file, no device, no context length."""

from gptstar.model.config import GPTConfig
from gptstar.model.gpt import GPT

__all__ = ["GPT", "GPTConfig"]
