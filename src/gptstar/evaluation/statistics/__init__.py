"""Statistics: confidence intervals, and tests of differences."""
