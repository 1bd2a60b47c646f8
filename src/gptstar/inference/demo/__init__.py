"""A page to try models on: `gptstar demo`."""
