"""Figures of scored images. Pure NumPy."""
