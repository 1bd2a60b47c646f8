"""How good a model is, and how far beyond its training context it stays good."""
