"""Images in the rows of a Parquet file."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pez_fast.dataset.arrow import arrow

NAMES = ("image", "bytes", "path", "image_path", "file_name", "jpg", "png", "webp")  # columns taken without being named
_CHUNK, _CHUNKS = 32, 8  # rows decoded at once, and how many such chunks are kept for threads that come late


def bytes_or_path(value: Any) -> Any:
    """What a struct of bytes and path holds, as which Hugging Face's data sets hold images; any other value as it is."""
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


@dataclass(frozen=True)
class RowItem:
    """An image in a row: `row` counts within the row group `group`."""

    id: str
    path: str
    column: str
    group: int
    row: int

    def read(self) -> bytes | str:
        value = bytes_or_path(_reader(self.path, self.column).value(self.group, self.row))
        if not value:
            raise ValueError(f"row {self.id} holds no image")
        return str(Path(self.path).parent / value) if isinstance(value, str) else value


def parquet_items(path: Path, column: str | None) -> tuple[dict[str, Any], list[RowItem]]:
    """Facts by which the file is known again (its footer holds sizes and statistics of all columns), and its rows."""
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            column = _column(file.schema_arrow, column, path)
            metadata = file.metadata
            groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    except pa.ArrowInvalid as error:
        raise ValueError(f"the source {path} is damaged or no Parquet file: {error}") from None
    size = path.stat().st_size
    with path.open("rb") as raw:
        raw.seek(max(0, size - metadata.serialized_size - 8))
        footer = hashlib.sha256(raw.read() + str(size).encode()).hexdigest()[:16]
    places = ((g, row) for g, count in enumerate(groups) for row in range(count))
    items = [RowItem(str(k), str(path), column, g, row) for k, (g, row) in enumerate(places)]
    return {"digest": footer, "column": column}, items


def _column(schema: Any, column: str | None, path: Path) -> str:
    usable = [field.name for field in schema if _holds_images(field.type)]
    wanted = [column] if column is not None else [name for name in NAMES if name in usable][:1] or usable
    if len(wanted) == 1 and wanted[0] in usable:
        return wanted[0]
    why = (
        f"has no column {column!r} of bytes or paths"
        if column is not None
        else "has no column that is surely the images'"
    )
    raise ValueError(
        f"the source {path} {why}; its columns are {', '.join(f'{field.name} ({field.type})' for field in schema)}"
    )


def _holds_images(kind: Any) -> bool:
    types = arrow().types
    if types.is_struct(kind):
        return any(kind.field(k).name in ("bytes", "path") for k in range(kind.num_fields))
    return any(
        is_it(kind) for is_it in (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)
    )


class _Reader:
    """Values of one column, a few rows decoded at a time: a row group can be larger than the memory.

    Cheap for rows that are asked for nearly in order; a row far behind begins its row group anew.
    """

    def __init__(self, path: str, column: str) -> None:
        self._file = arrow().parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        self._column = column
        self._lock = threading.Lock()
        self._group, self._next = -1, 0
        self._chunks: Iterator[Any] = iter(())
        self._kept: deque[tuple[int, Any]] = deque(maxlen=_CHUNKS)  # first row of each, values

    def value(self, group: int, row: int) -> Any:
        with self._lock:
            first = self._kept[0][0] if self._kept else self._next
            if group != self._group or row < first:
                self._group, self._next = group, 0
                self._chunks = self._file.iter_batches(_CHUNK, row_groups=[group], columns=[self._column])
                self._kept.clear()
            while row >= self._next:
                values = next(self._chunks).column(0)
                self._kept.append((self._next, values))
                self._next += len(values)
            start, values = next(kept for kept in reversed(self._kept) if kept[0] <= row)
            return values[row - start].as_py()


_readers: dict[tuple[str, str], _Reader] = {}
_readers_lock = threading.Lock()


def _reader(path: str, column: str) -> _Reader:
    with _readers_lock:
        key = (path, column)
        if key not in _readers:
            _readers.clear()  # one file at a time, so that no handles pile up
            _readers[key] = _Reader(path, column)
        return _readers[key]
