"""Evaluation of models: harness tasks, loss against context length, recall, attention heads, and comparisons."""
