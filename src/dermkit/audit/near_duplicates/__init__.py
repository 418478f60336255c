"""Pairs of near duplicates, proved by laying one over the other."""
