"""The files of a folder of results: Parquet shards that are whole or absent."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pez_fast.dataset.arrow import arrow

Row = dict[str, Any]
FINGERPRINT = b"pez_fast configuration"  # the key of a shard's metadata under which its fingerprint stands
_ROWS = 1024  # rows after which a shard is full
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FullDiskError(OSError):
    """The disk, or the user's share of it, is full; the message is one sentence that names the file."""


def columns() -> Any:
    """Returns the schema of the shards; the row of an unreadable image has only id, seed, steps, error and stamp."""
    pa = arrow()
    text, number = pa.string(), pa.float64()
    return pa.schema(
        [
            pa.field("id", text, nullable=False),
            ("prompt", text),
            ("ids", pa.list_(pa.int32())),
            ("ids_score", number),
            ("text_score", number),
            ("seed", pa.int64()),
            ("steps", pa.int32()),
            ("error", text),
            ("stamp", text),
        ]
    )


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


def write_shard(path: Path, rows: Sequence[Row], fingerprint: str) -> None:
    """Writes rows as a shard, atomically; the shard carries the fingerprint of the configuration that made it."""
    pa = arrow()
    table = pa.Table.from_pylist(list(rows), columns().with_metadata({FINGERPRINT: fingerprint.encode()}))
    write_atomically(path, lambda file: pa.parquet.write_table(table, file, write_page_checksum=True))


class ShardWriter:
    """Writes rows into shards named after `stem`; it rewrites the last shard as a whole until that is full."""

    def __init__(self, folder: Path, stem: str, fingerprint: str) -> None:
        self._folder, self._stem, self._fingerprint = folder, stem, fingerprint
        numbers = [
            int(name[1])
            for path in folder.glob(f"{stem}-*.parquet")
            if (name := re.fullmatch(rf"{stem}-(\d+)", path.stem))
        ]
        self._number = max(numbers, default=-1) + 1
        self._rows: list[Row] = []
        self.begun = False

    def add(self, rows: Sequence[Row]) -> None:
        """Writes the rows; they are on the disk when it returns."""
        self.begun = True
        self._rows += rows
        write_shard(self._folder / f"{self._stem}-{self._number:06d}.parquet", self._rows, self._fingerprint)
        if len(self._rows) >= _ROWS:
            self._rows = []
            self._number += 1


def _sync(folder: Path) -> None:
    """Makes a file's new name durable, on systems that can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
