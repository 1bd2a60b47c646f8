"""Training: the Lightning loop, optimizers, schedules, and recording and saving of runs."""
