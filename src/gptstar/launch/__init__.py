"""Processes: for the devices of a run, for the jobs of a sweep, for a scheduler."""
