"""The command line: parse, call one function, print the path that was written."""

from dermkit.cli.app import app, main, run_command

__all__ = ["app", "main", "run_command"]
