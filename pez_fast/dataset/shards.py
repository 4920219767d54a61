"""The folder of results: Parquet shards that are whole or absent, and the ids that they hold."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pez_fast.dataset.arrow import arrow

try:
    import fcntl
except ImportError:  # Windows has no locks here: two runs of one shard are not kept apart
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]
_ROWS = 1024  # rows after which a shard is full
_SHARD = "part-*-of-*.parquet"
_FINGERPRINT = b"pez_fast configuration"


def columns() -> Any:
    """Returns the schema of the shards; the row of an unreadable image has only id, seed, steps and error."""
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
        ]
    )


def write_atomically(path: Path, fill: Callable[[BinaryIO], object], replace: bool = True) -> bool:
    """Writes a file that is there whole or not at all, whatever ends this process or the machine.

    Args:
        fill: a function that writes the contents into the open file.
        replace: whether to replace an existing file.

    Returns:
        Whether the file was written; without `replace`, an existing file stays.
    """
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
    table = pa.Table.from_pylist(list(rows), columns().with_metadata({_FINGERPRINT: fingerprint.encode()}))
    write_atomically(path, lambda file: pa.parquet.write_table(table, file))


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


@dataclass
class Completed:
    """What a folder holds.

    Attributes:
        ids: the ids of all rows.
        errors: the ids whose images could not be read.
        removed: the names of the unreadable shards that were removed.
    """

    ids: set[str] = field(default_factory=set)
    errors: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)


def completed_ids(folder: Path, fingerprint: str) -> Completed:
    """Returns the ids of all shards; afterwards each id is there once, and every shard can be read.

    The function sets unreadable shards aside under another name; only a failing disk leaves them. If two runs that did
    not know of one another have both written an id, it keeps the first of the rows, which are equal.

    Raises:
        ValueError: a shard was not written by this version of pez-fast batch, or by another configuration.
    """
    pa, found = arrow(), Completed()
    for path in sorted(folder.glob(_SHARD)):
        try:
            with pa.parquet.ParquetFile(path) as file:
                if not file.schema_arrow.equals(columns()):
                    raise TypeError
                made_by = (file.schema_arrow.metadata or {}).get(_FINGERPRINT, b"")
                ids, errors = (column.to_pylist() for column in file.read(["id", "error"]).itercolumns())
        except TypeError:
            raise ValueError(f"{path} was not written by this version of pez-fast batch; take another --out") from None
        except FileNotFoundError:  # another run has removed it meanwhile
            continue
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the error is the system's, not the Parquet reader's
                raise
            path.rename(path.with_name(f"{path.name}.unreadable"))
            found.removed.append(path.name)
            continue
        if made_by != fingerprint.encode():
            raise ValueError(f"{path} was made by another configuration than this run's; take another --out")
        if len(set(ids)) < len(ids) or not found.ids.isdisjoint(ids):
            _drop(path, found.ids, fingerprint)
        found.errors.update(k for k, error in zip(ids, errors, strict=True) if error is not None)
        found.ids.update(ids)
    return found


def _drop(path: Path, ids: set[str], fingerprint: str) -> None:
    """Rewrites a shard without the rows of these ids and without repeated rows."""
    rows: dict[str, Row] = {}
    for row in arrow().parquet.read_table(path, partitioning=None).to_pylist():
        if row["id"] not in ids:
            rows.setdefault(row["id"], row)
    if rows:
        write_shard(path, list(rows.values()), fingerprint)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(folder: Path, stem: str) -> Iterator[None]:
    """Lets only one run at a time write the shards of a stem; the system lifts the lock however the run ends.

    It also removes the temporary files of runs that were killed.

    Raises:
        ValueError: another run holds the lock.
    """
    with _lock(folder, stem) as free:
        if not free:
            raise ValueError(
                f"another run is writing {stem} into {folder}; give each its own --shard i/n, or wait for it"
            )
        for path in folder.glob(".part-*.tmp"):
            other = path.name.removeprefix(".").partition(".")[0].rpartition("-")[0]
            if other == stem:
                path.unlink(missing_ok=True)
            else:
                with _lock(folder, other) as unlocked:
                    if unlocked:
                        path.unlink(missing_ok=True)
        yield


@contextmanager
def _lock(folder: Path, stem: str) -> Iterator[bool]:
    """Yields whether the lock was free; if so, it is held inside the context."""
    if fcntl is None:
        yield True
        return
    with (folder / f".{stem}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True


def _sync(folder: Path) -> None:
    """Makes a file's new name durable, on systems that can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
