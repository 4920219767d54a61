"""What is printed on stdout, and where it goes if stdout does not take it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table


def stdout() -> Console:
    """Returns a console on stdout that prints what it is given as it is."""
    return Console(highlight=False, emoji=False, markup=False)


def put_table(console: Console, table: Table) -> None:
    """Prints a table on stdout; as `put`."""
    _put(lambda: console.print(table), lambda: "".join(segment.text for segment in console.render(table)))


def put(text: str) -> None:
    """Prints a text on stdout; where stdout does not take it (a full disk), on stderr, so that it is not lost.

    Raises:
        OSError: stdout does not take it; a pipe that nobody reads any more is a BrokenPipeError.
    """
    _put(lambda: print(text), lambda: text)


def _put(write: Callable[[], None], text: Callable[[], str]) -> None:
    try:
        write()
        flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if sys.stderr is not None:
            print(text(), file=sys.stderr, flush=True)
        reason = f"stdout cannot be written: {error.strerror}" if error.strerror else str(error)
        raise OSError(f"{reason}; what it did not take stands above") from None


def flush() -> None:
    """Flushes stdout.

    Raises:
        OSError: stdout does not take what was printed.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"stdout cannot be written: {error.strerror}") from None
