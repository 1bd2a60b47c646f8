"""The data order of a run: a pure function of seed and position."""
