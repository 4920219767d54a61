"""Stamps: what an image was when its prompt was learned, so that an image that has changed is learned again.

A stamp is the text `size:time:digest`: the size and time of the file that holds the image (of the whole file for a tar
and for bytes in a Parquet file), and a digest of the image's bytes. Where size and time are as they were, nothing is
read. Elsewhere the digest decides, so that a copied or restored data set is read, and not learned, again.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

_BLOCK = 1 << 20
_NO_IMAGE = "none"  # in place of the digest where the source itself holds no image


def file_state(path: str) -> str:
    """Returns the size and time of a file as `size:time`, or an empty text if there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return ""
    return f"{state.st_size}:{state.st_mtime_ns}"


def stamp_of(item: Any, source: bytes | str | None) -> str:
    """Returns the stamp of an item.

    Args:
        source: what `item.read()` gave (bytes, or a path), or None if it gave an error.

    Returns:
        The stamp; it is empty if there is no file, and its digest is empty if the file cannot be read.
    """
    state = file_state(source) if isinstance(source, str) else item.state()
    return state and f"{state}:{_NO_IMAGE if source is None else _digest(source)}"


def is_as_it_was(item: Any, stamp: str) -> bool:
    """Returns whether sizes and times alone show that the item is still that of the stamp."""
    state, _, digest = stamp.rpartition(":")
    return item.state() == state and (bool(digest) or not state)


def has_changed(item: Any, stamp: str) -> bool:
    """Returns whether the item's image, read now, is another than that of the stamp.

    An image that cannot be read now has not changed: what was learned from it stays.
    """
    try:
        source = item.read()
    except ValueError:
        return False
    state, _, digest = stamp.rpartition(":")
    if digest and isinstance(source, str) and file_state(source) == state:
        return False
    return _digest(source) not in ("", digest)


def _digest(source: bytes | str) -> str:
    """Returns a digest of bytes or of a file; an empty text if the file cannot be read."""
    state = hashlib.blake2b(digest_size=16)
    if isinstance(source, bytes):
        state.update(source)
        return state.hexdigest()
    if not os.path.isfile(source):  # opening a pipe would wait for its writer
        return ""
    try:
        with open(source, "rb") as file:
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError:
        return ""
    return state.hexdigest()
