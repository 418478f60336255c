"""Uncertainty: intervals, resampling, tests, power. Pure NumPy and SciPy."""
