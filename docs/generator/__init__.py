"""Writes the reference pages of docs/reference from the code: `make reference`, or `python docs/generate.py`."""
