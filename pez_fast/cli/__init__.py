"""The command line."""

from pez_fast.cli.commands import app, main

__all__ = ["app", "main"]
