"""Images as a command line names them: files, addresses, and - for stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STDIN = "-"


def read_images(names: Sequence[str], each: bool = False) -> list[Any]:
    """Returns the images.

    With `each`, an image that cannot be read becomes the sentence that says why, as an object of its own class, so that
    the others go on.

    Raises:
        ValueError: a name is a folder, stdin is named twice or is a terminal, or (without `each`) an image cannot be
            read.
    """
    if list(names).count(STDIN) > 1:
        raise ValueError("- stands for the one image on stdin; it is given more than once")
    for name in names:
        if _is_folder(name):
            raise ValueError(
                f"image {name} is a folder; `pez-fast batch {name} --out DIR` learns a prompt for each image in it"
            )
    return [_read(name, each) for name in names]


def _read(name: str, each: bool) -> Any:
    from pez_fast.images import load_image

    try:
        return load_image(_stdin() if name == STDIN else name)
    except ValueError as error:
        if not each:
            raise
        return Unreadable(error)


class Unreadable:
    """What stands for an image that cannot be read: as a file, it raises the sentence that says why."""

    def __init__(self, error: ValueError) -> None:
        self.error = error

    def read(self) -> bytes:
        """Raises the error again, which the task then turns into a result."""
        raise self.error


def _stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("image - is read from stdin, where nothing is piped in; try pez-fast invert - < image.png")
    data = sys.stdin.buffer.read()
    if not data:
        raise ValueError("image - is empty: 0 bytes came from stdin")
    return data


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):
        return False
