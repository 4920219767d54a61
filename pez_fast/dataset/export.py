"""A folder of results as one CSV or JSONL file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pez_fast._shared.files import FullDiskError, write_atomically
from pez_fast.dataset.arrow import arrow
from pez_fast.dataset.held import Held, scan
from pez_fast.dataset.manifest import fingerprint_of, stored_configuration
from pez_fast.dataset.shards import Row, columns
from pez_fast.dataset.sources import open_source
from pez_fast.report.console import say
from pez_fast.result import finite_or_none

_KINDS = (".csv", ".jsonl")
_HEAD = 4096  # bytes of an existing file that show whether an export wrote it


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        rows: how many rows it wrote.
        errors: how many of all images could not be read.
        missing: the ids of the images of the source that have no row yet; None if the source cannot be listed now.
    """

    rows: int
    errors: int
    missing: list[str] | None


def exported_columns() -> list[str]:
    """Returns the columns of an export: those of the shards without `stamp`."""
    return [name for name in columns().names if name != "stamp"]


def export_rows(folder: str | os.PathLike, file: str | os.PathLike, only_errors: bool = False) -> Export:
    """Writes the rows of a folder of results into one file, each image once; the folder stays as it is.

    A run may be writing the folder meanwhile.

    Args:
        folder: the folder that a data set was learned into.
        file: a path that ends in .csv (`ids` as a list in JSON) or in .jsonl (an object in each line). An earlier
            export is replaced.
        only_errors: write the rows of the images that could not be read, and no others.

    Raises:
        ValueError: the folder holds no results, or those of several configurations; the file cannot be written, or
            another program wrote it.
        FullDiskError: the disk is full; the earlier file stays.
        ImportError: pyarrow is not installed.
    """
    arrow()
    folder, target = Path(folder), Path(os.path.realpath(file))
    stored = _results(folder)
    try:
        _check_target(folder, file, target)
    except OSError as error:
        raise ValueError(f"the file {file} cannot be written: {error.strerror or error}") from None
    held = scan(folder, fingerprint_of(stored) if stored else None)
    _warn(folder, held)
    errors = sum(entry.error is not None for entry in held.rows.values())

    def fill(out: BinaryIO) -> None:
        _write(out, target.suffix.lower(), _rows(folder, held, only_errors))

    try:
        write_atomically(target, fill)
    except FullDiskError:
        raise
    except OSError as error:
        raise ValueError(f"the file {file} cannot be written: {error.strerror or error}") from None
    return Export(errors if only_errors else len(held.rows), errors, _missing(stored, held))


def _results(folder: Path) -> dict[str, Any] | None:
    """Returns the configuration of a folder of results; None if its manifest is lost.

    Raises:
        ValueError: it is no folder of results.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist" if not folder.exists() else f"{folder} is no folder")
    stored = stored_configuration(folder)
    if stored is None:
        held = scan(folder, None)
        if not held.rows:
            raise ValueError(f"the folder {folder} holds no results of pez-fast batch")
        if len(held.makers) > 1:
            raise ValueError(
                f"the folder {folder} has lost its manifest and holds results of {len(held.makers)} configurations; "
                "the command pez-fast batch that began it says which files are not its own"
            )
    return stored


def _check_target(folder: Path, file: str | os.PathLike, target: Path) -> None:
    """Raises ValueError if the file must not be written."""
    if target.suffix.lower() not in _KINDS:
        raise ValueError(f"the file {file} must end in .csv or .jsonl")
    if not target.parent.is_dir():
        raise ValueError(f"the file {file} cannot be written: there is no folder {target.parent}")
    if target.is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"the file {file} must not be in {folder}, where readers of Parquet would meet it")
    if target.exists() and not _is_export(target):
        raise ValueError(f"the file {file} exists, and is no export of pez-fast; take another name")


def _is_export(target: Path) -> bool:
    """Returns whether an export wrote the file."""
    if not target.is_file():
        return False
    try:
        with target.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if target.suffix.lower() == ".csv":
        return head.startswith(_csv_line(exported_columns()).encode())
    return not head or head.startswith(b'{"id": "') and all(f'"{n}": '.encode() in head for n in ("prompt", "ids"))


def _rows(folder: Path, held: Held, only_errors: bool) -> Iterator[Row]:
    """Yields the rows, one file after the other.

    Raises:
        ValueError: a run has taken rows out of a file meanwhile.
    """
    chosen: dict[str, dict[int, str]] = {}
    for key, entry in held.rows.items():
        if entry.error is not None or not only_errors:
            chosen.setdefault(entry.file, {})[entry.row] = key
    names = exported_columns()
    for name in sorted(chosen):
        try:
            table = arrow().parquet.read_table(folder / name, partitioning=None, columns=names)
            rows = table.take(sorted(chosen[name])).to_pylist()
        except (FileNotFoundError, IndexError):
            rows = []
        if [row["id"] for row in rows] != [chosen[name][k] for k in sorted(chosen[name])]:
            raise ValueError(f"{folder / name} was written anew while it was read; the same command tries again")
        yield from rows


def _write(out: BinaryIO, kind: str, rows: Iterator[Row]) -> None:
    """Writes rows as CSV or JSONL."""
    names = exported_columns()
    if kind == ".csv":
        out.write(_csv_line(names).encode())
    for row in rows:
        if kind == ".csv":
            cells = [json.dumps(v) if isinstance(v, list) else v for v in (row[name] for name in names)]
            out.write(_csv_line(cells).encode())
        else:
            plain = {name: finite_or_none(row[name]) for name in names}
            out.write(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _csv_line(values: list[Any]) -> str:
    """Returns a line of CSV; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _missing(stored: dict[str, Any] | None, held: Held) -> list[str] | None:
    """Returns the ids of the source that have no row; None if the source cannot be listed."""
    if stored is None or not isinstance(stored.get("source's place"), str):
        return None
    try:
        items = open_source(stored["source's place"], stored.get("source's column")).items
    except (ValueError, ImportError):
        return None
    return [item.id for item in items if item.id not in held.rows]


def _warn(folder: Path, held: Held) -> None:
    """Says which files of the folder the export leaves out."""
    for name, why in held.strangers.items():
        say(f"pez-fast: warning: {folder / name} {why}; it is left out")
    for name in held.unreadable:
        say(f"pez-fast: warning: {folder / name} cannot be read; it is left out, and pez-fast batch learns it again")
    for name, rows in held.extra.items():
        say(f"pez-fast: warning: {len(rows)} rows of {folder / name} are of images that stand in other rows")
