"""Start processes: one per device of a run, one per job of a sweep, or by a scheduler."""
