"""Errors of the command line: one sentence and an exit code, never a traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from pez_fast.report.console import say
from pez_fast.report.output import flush

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class Group(TyperGroup):
    """A group of commands that shows every error as one line on stderr, with an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a prompt can hold what the locale cannot print
        extra["standalone_mode"] = False
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"pez-fast: warning: {message}")
            try:
                code = super().main(args, "pez-fast", **extra)
            except Exception as error:  # the user of a command gets a sentence for every error
                code = complain(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("pez-fast: error: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            if sys.stdout is not None:
                flush()  # here, where typer still ends quietly, with FAILED, if nobody reads stdout


def complain(error: Exception) -> int:
    """Prints an error as one line and returns its exit code: USAGE for errors that are foreseen, FAILED for others."""
    usage = getattr(error, "format_message", None)  # only typer's own errors have it
    sentence = " ".join(str(usage() if usage else error).split())
    is_foreseen = usage is not None or isinstance(error, (ValueError, TypeError, ImportError))
    if isinstance(error, OSError) and error.strerror:
        error = OSError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        sentence = " ".join(str(error).split())
    is_told = isinstance(error, OSError) and error.errno is None  # a sentence of our own
    if not (is_foreseen or is_told) or not sentence:
        sentence = f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
    say(f"pez-fast: error: {sentence}")
    return USAGE if is_foreseen else FAILED
