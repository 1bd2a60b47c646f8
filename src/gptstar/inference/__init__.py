"""Generate text with a model."""
