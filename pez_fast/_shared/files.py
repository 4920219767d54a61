"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FullDiskError(OSError):
    """The disk, or the user's share of it, is full; the message is one sentence that names the file."""


def write_atomically(path: Path, fill: Callable[[BinaryIO], object], replace: bool = True) -> bool:
    """Writes a file that is there whole or not at all, whatever ends this process or the machine.

    Args:
        fill: a function that writes the contents into the open file.
        replace: whether to replace an existing file.

    Returns:
        Whether the file was written; without `replace`, an existing file stays.

    Raises:
        FullDiskError: the disk is full; what was there before is there still.
        OSError: the file cannot be written for another reason.
    """
    try:
        return _write(path, fill, replace)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise FullDiskError(
            f"{path} cannot be written: {os.strerror(error.errno)}; nothing that was written before is lost: "
            "make room there, and the same command continues"
        ) from None


def _write(path: Path, fill: Callable[[BinaryIO], object], replace: bool) -> bool:
    """Does the work of `write_atomically`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if path.exists():
                    return False
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)
    return True


def _sync(folder: Path) -> None:
    """Makes a file's new name durable, on systems that can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
