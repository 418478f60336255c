"""The run folder: its file names, formats and readers."""
