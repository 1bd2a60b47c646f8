"""Inspect prepared text: tables, pictures, benchmark overlap."""
