"""GPT* and its relatives in plain PyTorch: no file, no device, no context length."""

from gptstar.model.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
