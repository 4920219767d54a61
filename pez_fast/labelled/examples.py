"""Labelled examples as rows (column -> value) from files, lists and data sets of Hugging Face."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pez_fast._shared.installation import install_hint

HUB = "hf:"
_KINDS = "a path, 'hf:owner/name', a list of dicts, or a data set of the package datasets"


def read_examples(
    source: str | os.PathLike | Iterable[Mapping[str, Any]], limit: int | None = None, split: str | None = None
) -> list[dict[str, Any]]:
    """Returns labelled examples as rows: dicts of column and value, all with the same columns.

    A file is read as UTF-8, with or without a byte order mark. Its values are those of the file: texts in a .csv or
    .tsv file, where white space and line breaks within quotes are kept and empty lines are skipped.

    Args:
        source: a .csv, .tsv, .jsonl, .ndjson, .json (a list of objects) or .parquet file; a list of dicts; a Dataset,
            or a DatasetDict with `split`, of the package datasets; or "hf:owner/name" or "hf:owner/name/config", which
            that package loads from the hub.
        limit: the most rows to read, from the first on; what stands below them is not checked. Default: all.
        split: which part of a DatasetDict, or of a data set on the hub (there "train" by default).

    Raises:
        ValueError: the source cannot be read, has no rows, or has rows with different columns. Rows are counted from 1.
        TypeError: `source` has another type.
        ImportError: pyarrow or datasets is needed and not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a positive integer or None; got {limit!r}")
    if isinstance(source, str) and source.startswith(HUB):
        return _checked(_from_hub(source, split or "train"), f"source {source}", limit)
    if isinstance(source, Mapping):
        part, name = _part(source, split)
        return _checked(part, name, limit)
    if split is not None:
        raise ValueError(f"split {split!r} can be given for a DatasetDict or 'hf:owner/name'; source is another kind")
    if isinstance(source, (str, os.PathLike)):
        return _checked(_from_file(source), f"source {source}", limit)
    if isinstance(source, (list, tuple)):
        return _checked(source, "source (the given list)", limit)
    if not hasattr(source, "column_names"):
        raise TypeError(f"source must be {_KINDS}; got {type(source).__name__}")
    return _checked(source, "source (the given data set)", limit)


def _checked(rows: Iterable[Any], name: str, limit: int | None) -> list[dict[str, Any]]:
    """Returns the first `limit` rows as new dicts, and refuses rows that do not fit together."""
    found: list[dict[str, Any]] = []
    for number, row in enumerate(islice(rows, limit), 1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{name}: row {number} must be a dict of columns; it is {_kind(row)}")
        if not row or not all(isinstance(column, str) for column in row):
            raise ValueError(f"{name}: row {number} must have texts as names of columns; got {_listed(row)}")
        if found and row.keys() != found[0].keys():
            raise ValueError(
                f"{name}: row {number} has the columns {_listed(row)}, while row 1 has {_listed(found[0])}"
            )
        found.append(dict(row))
    if not found:
        raise ValueError(f"{name} holds no rows")
    return found


def _part(source: Mapping[str, Any], split: str | None) -> tuple[Any, str]:
    """Returns the part of a DatasetDict, and its name for errors."""
    if not all(hasattr(part, "column_names") for part in source.values()):
        raise TypeError(f"source must be {_KINDS}; got a dict with the keys {_listed(source)}")
    if split is None or split not in source:
        given = "is needed" if split is None else f"{split!r} does not exist"
        raise ValueError(f"source (the given DatasetDict): split {given}; there are {_listed(source)}")
    return source[split], f"source (split {split!r} of the given DatasetDict)"


def _from_hub(source: str, split: str) -> Any:
    """Returns a split of a data set on the hub."""
    parts = source.removeprefix(HUB).split("/")
    if len(parts) not in (2, 3) or not all(part == part.strip() and part for part in parts):
        raise ValueError(f"source {source!r} must be 'hf:owner/name' or 'hf:owner/name/config'")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            f"source {source} is loaded by the package datasets, which cannot be imported; pip install datasets"
        ) from None
    try:
        return load_dataset("/".join(parts[:2]), *parts[2:], split=split)
    except Exception as error:  # of the network, of the hub, of the package
        raise ValueError(f"source {source} cannot be loaded (split {split!r}): {_first_line(error)}") from None


def _from_file(path: str | os.PathLike) -> Iterator[Any]:
    """Returns the rows of a file by the end of its name."""
    file, shown = Path(path), str(path)
    name = f"source {shown if shown and shown.isprintable() else repr(shown)}"
    try:
        if not shown or not file.exists():
            raise ValueError(f"{name} does not exist")
        if not file.is_file():
            raise ValueError(f"{name} is a folder, not a file" if file.is_dir() else f"{name} is no file")
        suffix = file.suffix.lower()
        if suffix == ".parquet":
            return _parquet(file, name)
        if suffix not in _READERS:
            raise ValueError(f"{name} must end with one of {', '.join(_READERS)}, .parquet")
        text = _decoded(file.read_bytes(), name)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return _READERS[suffix](text, name)


def _decoded(data: bytes, name: str) -> str:
    """Returns the text of a file in UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{name} is in UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        data = error.object  # the mark may be left out of it, and the place counts from there
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(f"{name} is not in UTF-8: byte 0x{byte:02x} on line {line}; save it as UTF-8") from None


def _csv(text: str, name: str, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yields the rows below a header."""
    before = csv.field_size_limit()
    header: list[str] = []
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        start = records.line_num + 1
        try:
            csv.field_size_limit(max(before, len(text)))  # one value may be as long as the file
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{name} cannot be read from line {start} on: {error}") from None
        finally:
            csv.field_size_limit(before)
        if header and record:
            if len(record) != len(header):
                raise ValueError(
                    f"{name}: the row on line {start} has {len(record)} values, "
                    f"while the header names {len(header)} columns: {_listed(header)}"
                )
            yield dict(zip(header, record, strict=True))
        elif record:
            header = _header(record, name)


def _tsv(text: str, name: str) -> Iterator[dict[str, str]]:
    """Yields the rows below a header, with tabs between values."""
    return _csv(text, name, "\t")


def _header(names: list[str], name: str) -> list[str]:
    """Returns the names of the columns, each of which must be another one."""
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise ValueError(f"{name} has the column {twice!r} twice")
    return names


def _json_lines(text: str, name: str) -> Iterator[Any]:
    """Yields the values of the lines; only a line feed ends a line, since texts may hold other separators."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = _loaded(line, name, number)
            if not isinstance(row, dict):
                raise ValueError(f"{name}: line {number} must be an object such as {{...}}; it is {_kind(row)}")
            yield row


def _json(text: str, name: str) -> Iterator[Any]:
    """Returns the values of a list."""
    rows = _loaded(text, name)
    if not isinstance(rows, list):
        raise ValueError(
            f"{name} must be a list of objects; it is {_kind(rows)} (one object a line is read from .jsonl)"
        )
    return iter(rows)


def _loaded(text: str, name: str, line: int | None = None) -> Any:
    """Returns the value of a text in JSON; `line` is where a text of one line stands."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        hint = "; one object a line is read from .jsonl" if error.msg == "Extra data" and line is None else ""
        raise ValueError(f"{name} is no JSON on line {line or error.lineno}: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON{f' on line {line}' if line else ''}: {_first_line(error)}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON as a dict, and refuses one that would lose a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in names if names.count(key) > 1)!r} twice")
    return found


def _parquet(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ImportError(f"{name} is read by pyarrow, which cannot be imported; {install_hint('data')}") from None
    try:
        with ParquetFile(path) as file:
            _header(file.schema_arrow.names, name)
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is damaged or no Parquet file: {_first_line(error)}") from None


_READERS: dict[str, Callable[[str, str], Iterator[Any]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
}


def _kind(value: Any) -> str:
    """Returns what a value is, in a word."""
    names = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null or None"}
    return names.get(type(value).__name__, f"of type {type(value).__name__}")


def _listed(names: Iterable[Any]) -> str:
    """Returns names in quotes with commas between."""
    return ", ".join(map(repr, names)) or "none"


def _first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
