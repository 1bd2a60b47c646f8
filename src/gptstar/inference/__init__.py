"""Using a model: text from a prompt."""
