"""The files of a folder of results: Parquet shards that are whole or absent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pez_fast._shared.files import write_atomically
from pez_fast.dataset.arrow import arrow

Row = dict[str, Any]
FINGERPRINT = b"pez_fast configuration"  # the key of a shard's metadata under which its fingerprint stands
_ROWS = 1024  # rows after which a shard is full


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
