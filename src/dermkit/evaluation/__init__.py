"""Predictions become metrics.json."""
