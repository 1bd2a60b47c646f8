"""The web page of `gptstar demo`, for trying models."""
