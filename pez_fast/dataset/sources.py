"""The sources of a data set (folder, list file, Parquet, WebDataset tar) as lists of items with unique ids."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pez_fast.dataset.rows import RowItem, parquet_items
from pez_fast.dataset.stamps import file_state
from pez_fast.images import SUFFIXES


@dataclass(frozen=True)
class FileItem:
    """An image in a file of its own."""

    id: str
    path: str

    def read(self) -> str:
        """Returns the path."""
        return self.path

    def state(self) -> str:
        """Returns the size and time of the file, as `file_state` does."""
        return file_state(self.path)


@dataclass(frozen=True)
class TarItem:
    """An image in an uncompressed tar: `size` bytes from `offset` on."""

    id: str
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns the image's bytes.

        Raises:
            ValueError: the tar cannot be read, or ends before them.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ValueError(f"the tar {self.path} cannot be read: {error}") from None
        if len(data) < self.size:
            raise ValueError(f"the tar {self.path} ends within {self.id}")
        return data

    def state(self) -> str:
        """Returns the size and time of the tar, as `file_state` does."""
        return file_state(self.path)


Item = FileItem | TarItem | RowItem


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        identity: plain values that tell the data set from others, and stay as they are when it grows: its kind, its
            place (an absolute path), and the column of a Parquet file.
        items: the images in a fixed order, with unique ids; any thread or process can read any item at any time.
    """

    identity: dict[str, Any]
    items: Sequence[Item]


def open_source(path: str | os.PathLike, column: str | None = None) -> Source:
    """Lists a data set without reading its images.

    Args:
        path: one of these sources (in brackets their ids): a folder (relative paths), a .parquet file (row numbers), a
            .tar file as WebDataset writes it (keys), or a text file with one path per line, relative to its own folder
            (the lines).
        column: the column of a Parquet file. Default: found by name and type, if there is no doubt.

    Raises:
        ValueError: the source cannot be read, holds no images, or has an id twice; the message names the source.
        ImportError: a Parquet file needs pyarrow, which is not installed.
    """
    path = Path(os.path.abspath(path))  # another process, in another working directory, may read the items
    if column is not None and path.suffix.lower() != ".parquet":
        raise ValueError(f"a column can be named for a .parquet file only; {path} is none")
    items: Sequence[Item]
    try:
        if path.is_dir():
            kind, items = "folder", _folder(path)
        elif not path.is_file():
            raise ValueError(f"the source {path} does not exist, or is neither a file nor a folder")
        elif path.suffix.lower() == ".parquet":
            kind, (column, items) = "parquet", parquet_items(path, column)
        elif path.suffix.lower() == ".tar":
            kind, items = "tar", _tar(path)
        else:
            kind, items = "list", _list(path)
    except OSError as error:
        raise ValueError(f"the source {path} cannot be read: {error}") from None
    if not items:
        raise ValueError(f"the source {path} holds no images")
    return Source({"kind": kind, "place": _text(str(path))} | ({"column": column} if column else {}), items)


def _folder(root: Path) -> list[Item]:
    """Lists the files with suffixes of images in a folder and all folders below, except hidden ones.

    Links to folders are followed after all else, and only to folders that were not met before.
    """
    found: list[tuple[str, str]] = []
    linked: list[tuple[str, str]] = []
    met: set[tuple[int, int]] = set()

    def list_folder(folder: str, prefix: str) -> None:
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in met:
            return
        met.add((state.st_dev, state.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    list_folder(entry.path, f"{prefix}{entry.name}/")
                elif os.path.isdir(entry.path):
                    linked.append((entry.path, f"{prefix}{entry.name}/"))
                elif _is_image(entry.name) and os.path.isfile(entry.path):
                    found.append((_text(prefix + entry.name), entry.path))

    list_folder(str(root), "")
    for folder, prefix in linked:  # grows while it is read
        list_folder(folder, prefix)
    found.sort()
    _refuse_twice((name for name, _ in found), "name", root)
    return [FileItem(name, path) for name, path in found]


def _list(path: Path) -> list[Item]:
    """Lists the paths of a text file."""
    data = path.read_bytes()
    if b"\0" in data[:4096]:
        raise ValueError(
            f"the source {path} is no list of paths; "
            "it must be a folder, a list in a text file, a .parquet or a .tar file"
        )
    lines = [line for line in data.decode("utf-8-sig", "surrogateescape").splitlines() if line.strip()]
    names = [_text(line) for line in lines]
    _refuse_twice(names, "line", path)
    return [FileItem(name, str(path.parent / line)) for name, line in zip(names, lines, strict=True)]


def _tar(path: Path) -> list[Item]:
    """Lists the images of a tar.

    The ids are WebDataset's keys, the names up to the first dot; images that share a key have their whole names as ids.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = [
                m for m in tar if m.isreg() and _is_image(m.name) and not PurePosixPath(m.name).name.startswith(".")
            ]
    except tarfile.TarError as error:
        raise ValueError(
            f"the source {path} is damaged or no uncompressed tar (images are compressed already): {error}"
        ) from None
    keys = [_text(_key(m.name)) for m in members]
    shared = {key for key, count in Counter(keys).items() if count > 1}
    ids = [_text(m.name) if key in shared else key for m, key in zip(members, keys, strict=True)]
    _refuse_twice(ids, "key", path)
    return [TarItem(name, str(path), m.offset_data, m.size) for name, m in zip(ids, members, strict=True)]


def _key(name: str) -> str:
    """Returns WebDataset's key of a member."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _is_image(name: str) -> bool:
    """Returns whether the name has the suffix of an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _text(name: str) -> str:
    """Returns a name as text that Parquet can hold, whatever its bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse_twice(names: Iterable[str], what: str, path: Path) -> None:
    """Raises ValueError if a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the source {path} holds the {what} {name!r} twice; ids must be unique")
        seen.add(name)


def digest(values: Iterable[Any]) -> str:
    """Returns a short digest of a sequence of plain values."""
    state = hashlib.sha256()
    for value in values:
        state.update(repr(value).encode() + b"\n")
    return state.hexdigest()[:16]
