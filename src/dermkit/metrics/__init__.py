"""Metrics as pure NumPy functions, usable alone: one file per family, no torch, no tables."""
