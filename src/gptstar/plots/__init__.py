"""Plots, one file per question. They take plain values, so run directories, reports and notebooks show the same."""
