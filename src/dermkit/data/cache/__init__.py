"""Decoded pixels and features, looked up by their content."""
