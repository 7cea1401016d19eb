"""Conversion of well-formed runs, a column at a time."""
