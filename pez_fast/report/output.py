"""What is printed on stdout, and where it goes if stdout does not take it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from errno import ENOTDIR
from pathlib import Path

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


def check_file(
    path: Path, noun: str, suffix: str, inputs: Sequence[str | Path], material: str, is_ours: Callable[[Path], bool]
) -> None:
    """Raises ValueError, before anything slow begins, if a file could not be written, or must not.

    Args:
        path: the file.
        noun: what it is, such as "sheet".
        suffix: how its name must end.
        inputs: files that it must not be written over.
        material: what one of `inputs` is, such as "an image".
        is_ours: whether a file that is there may be replaced.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"the {noun} must be a {suffix} file; got {str(path)!r}")
    try:
        place = path.resolve()
        if any(place == _place(other) for other in inputs):
            raise ValueError(
                f"the {noun} {path} would be written over {material} that it is made from; give it another name"
            )
        new = not path.exists()
        if not new and not path.is_file() and not path.is_dir():
            raise ValueError(f"the {noun} {path} cannot be written: it is no ordinary file")
        if not new and path.is_file() and not is_ours(path):
            raise ValueError(
                f"the file {path} is no {noun} of pez_fast, so it is left as it is; give the {noun} another name"
            )
        path.open("ab").close()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the {noun} {path} cannot be written: {reason}") from None
    if new:
        path.unlink()


def _place(path: str | Path) -> Path | None:
    """Returns where a path leads, or None for what is no path, such as an address."""
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError):
        return None


def check_folder(folder: str | Path) -> None:
    """Makes a folder, and raises ValueError if nothing can be written there."""
    try:
        if Path(folder).exists() and not Path(folder).is_dir():
            raise NotADirectoryError(ENOTDIR, "it is a file")
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the folder {folder} cannot be written: {reason}") from None
