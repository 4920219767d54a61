"""Images in the rows of a Parquet file."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pez_fast.dataset.arrow import arrow
from pez_fast.dataset.stamps import file_state

NAMES = (
    "image",
    "bytes",
    "path",
    "image_path",
    "file_name",
    "jpg",
    "png",
    "webp",
)  # names of columns that hold images, the first one preferred
_CHUNK, _CHUNKS = 32, 8  # rows decoded at once, and the chunks kept for threads that are behind


def bytes_or_path(value: Any) -> Any:
    """Returns the bytes of a struct, else its path; returns any other value as it is.

    Hugging Face data sets hold images as structs of bytes and path.
    """
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


@dataclass(frozen=True)
class RowItem:
    """An image in a row of a Parquet file.

    Attributes:
        group: the row group.
        row: the number of the row in its row group.
    """

    id: str
    path: str
    column: str
    group: int
    row: int

    def read(self) -> bytes | str:
        """Returns the image's bytes or its path.

        Raises:
            ValueError: the row holds no image, or the file cannot be read.
        """
        try:
            value = bytes_or_path(_reader(self.path, self.column).value(self.group, self.row))
        except (arrow().ArrowException, OSError, IndexError, StopIteration) as error:
            raise ValueError(f"row {self.id} of {self.path} cannot be read: {error or 'it is gone'}") from None
        if not value:
            raise ValueError(f"row {self.id} holds no image")
        return str(Path(self.path).parent / value) if isinstance(value, str) else value

    def state(self) -> str:
        """Returns the size and time of the Parquet file, as `file_state` does."""
        return file_state(self.path)


def parquet_items(path: Path, column: str | None) -> tuple[str, list[RowItem]]:
    """Returns the name of a Parquet file's column of images, and its rows as items.

    Raises:
        ValueError: the file is damaged, or has no such column of images.
    """
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            column = _column(file.schema_arrow, column, path)
            metadata = file.metadata
            groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    except pa.ArrowInvalid as error:
        raise ValueError(f"the source {path} is damaged or no Parquet file: {error}") from None
    places = ((g, row) for g, count in enumerate(groups) for row in range(count))
    return column, [RowItem(str(k), str(path), column, g, row) for k, (g, row) in enumerate(places)]


def _column(schema: Any, column: str | None, path: Path) -> str:
    """Returns the name of the column of images: the given one, or the one that is found without doubt."""
    usable = [field.name for field in schema if _holds_images(field.type)]
    matches = [column] if column is not None else [name for name in NAMES if name in usable][:1] or usable
    if len(matches) == 1 and matches[0] in usable:
        return matches[0]
    why = (
        f"has no column {column!r} of bytes or paths"
        if column is not None
        else "has no column that is surely the images'"
    )
    raise ValueError(
        f"the source {path} {why}; its columns are {', '.join(f'{field.name} ({field.type})' for field in schema)}"
    )


def _holds_images(kind: Any) -> bool:
    """Returns whether a column of this type can hold images, as bytes, paths or structs of them."""
    types = arrow().types
    if types.is_struct(kind):
        return any(kind.field(k).name in ("bytes", "path") for k in range(kind.num_fields))
    return any(
        matches(kind) for matches in (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)
    )


class _Reader:
    """Values of one column; it decodes a few rows at a time, since a row group can be larger than the memory.

    Reading rows nearly in order is cheap; reading a row far back begins its row group anew.
    """

    def __init__(self, path: str, column: str) -> None:
        self._file = arrow().parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        self._column = column
        self._lock = threading.Lock()
        self._group, self._next = -1, 0
        self._chunks: Iterator[Any] = iter(())
        self._kept: deque[tuple[int, Any]] = deque(maxlen=_CHUNKS)  # the first row of each chunk, and its values

    def value(self, group: int, row: int) -> Any:
        """Returns the value of a row in a row group."""
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


_readers: dict[tuple[str, str, str], _Reader] = {}
_readers_lock = threading.Lock()


def _reader(path: str, column: str) -> _Reader:
    """Returns the reader of a column, which all threads share."""
    with _readers_lock:
        key = (path, column, file_state(path))  # a file that was written anew has another reader
        if key not in _readers:
            _readers.clear()  # one file at a time, so that no handles pile up
            _readers[key] = _Reader(path, column)
        return _readers[key]
