"""Runs and evaluations, read: one by one, and as pandas frames. What notebooks, tables and reports stand on."""
