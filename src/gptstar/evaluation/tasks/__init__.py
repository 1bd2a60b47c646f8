"""Benchmarks: tasks of lm-evaluation-harness, scored by our own model."""
