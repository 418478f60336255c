"""Predict new images with a model folder."""
