"""What a folder of results holds, each image once, and how its files are put right where they hold more."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pez_fast.dataset.arrow import arrow
from pez_fast.dataset.locks import free_lock, repair_lock
from pez_fast.dataset.shards import FINGERPRINT, columns, write_shard
from pez_fast.report.console import say

_OURS = re.compile(r"part-[\w-]+-of-\d+-\w+\.parquet")  # the names that `ShardWriter` and the actors of Ray give


class Entry(NamedTuple):
    """Where a row is, and what the row says of its image."""

    file: str
    row: int
    stamp: str
    error: str | None


@dataclass
class Held:
    """What a folder holds.

    Attributes:
        rows: an `Entry` for each id.
        extra: for each file, the numbers of the rows whose images stand in another row already.
        sizes: for each file that can be read, its number of rows.
        makers: the fingerprints of these files.
        unreadable: the files that are named as ours and cannot be read.
        strangers: the other files of Parquet, each with what is wrong with it, as the end of a sentence.
    """

    rows: dict[str, Entry] = field(default_factory=dict)
    extra: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    makers: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    strangers: dict[str, str] = field(default_factory=dict)

    def refuse_strangers(self, folder: Path) -> None:
        """Raises ValueError if there are strangers, since a reader of the folder would mix their rows in."""
        for name, why in self.strangers.items():
            more = f" (and {len(self.strangers) - 1} more)" if len(self.strangers) > 1 else ""
            raise ValueError(f"{folder / name}{more} {why}; move it to another place, or take another --out")


def scan(folder: Path, fingerprint: str | None) -> Held:
    """Returns what a folder holds; the folder stays as it is.

    Args:
        fingerprint: that of the run's configuration; None takes rows of any configuration.
    """
    held = Held()
    for name in _files(folder):
        if any((folder / parent / "_manifest.json").exists() for parent in Path(name).parents[:-1]):
            held.strangers[name] = "belongs to a folder of results of its own"
            continue
        try:
            read = _read(folder / name)
        except FileNotFoundError:  # another run has removed it meanwhile
            continue
        except _Unreadable as error:
            if _OURS.fullmatch(name):
                held.unreadable.append(name)
            else:
                held.strangers[name] = str(error)
            continue
        except TypeError as error:
            held.strangers[name] = str(error)
            continue
        made_by, ids, stamps, errors = read
        if fingerprint is not None and made_by != fingerprint:
            held.strangers[name] = "was made by another configuration than this run's, or from another data set"
            continue
        held.makers.add(made_by)
        held.sizes[name] = len(ids)
        for k, (key, stamp, why) in enumerate(zip(ids, stamps, errors, strict=True)):
            _take(held, key, Entry(name, k, stamp or "", why))
    return held


def settle(folder: Path, fingerprint: str, stem: str, again: Mapping[str, Entry]) -> Held:
    """Puts a folder right and returns what it then holds.

    Afterwards every file can be read and each image is there once; warnings name the files. An unreadable file and one
    that repeats others get names that readers of the folder skip. Files that another run is writing stay as they are.

    Args:
        stem: the stem of this run's files, whose lock it holds.
        again: rows to take out, since their images are to be learned again.

    Raises:
        ValueError: the folder holds files of Parquet that are not this run's.
        OSError: the folder cannot be written.
    """
    held = scan(folder, fingerprint)
    held.refuse_strangers(folder)
    if not (held.extra or held.unreadable or again):
        return held
    with repair_lock(folder):
        held = scan(folder, fingerprint)
        for name in held.unreadable:
            aside = _set_aside(folder, name, "unreadable")
            _warn(f"{folder / name} could not be read; it is now {aside}, and its images are learned again")
        doomed = {name: set(rows) for name, rows in held.extra.items()}
        for key, entry in again.items():
            now = held.rows.get(key)
            if now is not None and now[2:] == entry[2:]:
                doomed.setdefault(now.file, set()).add(now.row)
        for name, rows in doomed.items():
            _take_out(folder, name, rows, held, stem)
        return scan(folder, fingerprint)


def _files(folder: Path) -> list[str]:
    """Returns the files of Parquet that a reader of the folder reads, as relative paths; those named as ours first."""
    found = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        found += [os.path.relpath(os.path.join(path, n), folder) for n in names if n[0] not in "._"]
    return sorted((n for n in found if n.endswith(".parquet")), key=lambda n: (not _OURS.fullmatch(n), n))


class _Unreadable(Exception):
    """A file is damaged or no file of Parquet."""


def _read(path: Path) -> tuple[str, list[str], list[str], list[str | None]]:
    """Returns the fingerprint, ids, stamps and errors of a shard.

    Raises:
        TypeError: it is no shard of this version.
        _Unreadable: it is no file of Parquet, or a damaged one.
        OSError: the disk fails.
    """
    with _damage(), arrow().parquet.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(columns()):
            raise TypeError("was not written by this version of pez-fast batch")
        made_by = (file.schema_arrow.metadata or {}).get(FINGERPRINT, b"").decode()
        table = file.read()  # all columns, since reading them is what checks them
        ids, stamps, errors = (table.column(name).to_pylist() for name in ("id", "stamp", "error"))
        return made_by, ids, stamps, errors


@contextmanager
def _damage() -> Iterator[None]:
    """Turns the Parquet reader's complaints into _Unreadable; errors of the system stay as they are."""
    try:
        yield
    except (arrow().ArrowException, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise _Unreadable("is damaged or no file of Parquet") from None


def _take(held: Held, key: str, entry: Entry) -> None:
    """Adds a row; of two rows of an image one is extra: the one with an error, else the later one."""
    other = held.rows.get(key)
    if other is not None and (other.error is None or entry.error is not None):
        held.extra.setdefault(entry.file, []).append(entry.row)
        return
    if other is not None:
        held.extra.setdefault(other.file, []).append(other.row)
    held.rows[key] = entry


def _take_out(folder: Path, name: str, rows: set[int], held: Held, stem: str) -> None:
    """Takes rows out of a file, unless another run is writing it."""
    path, own = folder / name, name.rpartition("-")[0]
    extra = held.extra.get(name, [])
    with free_lock(folder, own, held=own == stem or not _OURS.fullmatch(name)) as free:
        if not free:
            _warn(f"another run is writing {path}; {len(rows)} of its images wait for the next run")
            return
        if len(extra) == held.sizes[name]:
            aside = _set_aside(folder, name, "duplicate")
            _warn(f"{path} holds no image that other files of the folder do not hold ({len(extra)}); it is now {aside}")
            return
        if extra:
            _warn(f"{path} held {len(extra)} images that the folder holds twice; these rows are taken out of it")
        kept = [row for k, row in enumerate(_all_rows(path)) if k not in rows]
        if kept:
            made_by = _read(path)[0]
            write_shard(path, kept, made_by)
        else:
            path.unlink(missing_ok=True)


def _all_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a shard."""
    return arrow().parquet.read_table(path, partitioning=None).to_pylist()


def _set_aside(folder: Path, name: str, why: str) -> str:
    """Gives a file a name that readers of the folder skip, and that no other file has; returns the name."""
    path, number = folder / name, 0
    while True:
        target = path.with_name(f"_{path.name}.{f'{number}.' if number else ''}{why}")
        if not target.exists():
            path.rename(target)
            return target.name
        number += 1


def _warn(text: str) -> None:
    say(f"pez-fast: warning: {text}")
