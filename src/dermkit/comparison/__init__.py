"""Runs and recipes against each other."""
