"""Plots, one file for each question. They take plain values: run directories, reports and notebooks show the same."""
