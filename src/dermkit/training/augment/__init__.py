"""Batched augmentation from counter-based random numbers."""
