"""New images become predictions."""
