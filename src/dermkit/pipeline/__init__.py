"""The commands as functions: each puts stages together, from a data set to a report."""
