"""Checkpoints: a model, its tokenizer and, during training, everything needed to resume."""
