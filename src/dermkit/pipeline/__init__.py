"""The stages put together: the verbs as functions."""
