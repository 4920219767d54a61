"""Masks of the 32 lanes of a warp, as Python ints: bit i stands for lane i."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

FULL = 0xFFFFFFFF


def to_mask(bools: np.ndarray | np.bool_) -> int:
    """The mask of bools of shape (32,); a single bool stands for all lanes."""
    if bools.ndim == 0 or len(bools) == 1:
        return FULL if bools else 0
    return int.from_bytes(np.packbits(bools, None, "little").tobytes(), "little")


@lru_cache(maxsize=4096)
def to_bools(mask: int) -> np.ndarray:
    """A read-only array of bools of shape (32,)."""
    octets = np.frombuffer(mask.to_bytes(4, "little"), np.uint8)
    bools = np.unpackbits(octets, bitorder="little").view(np.bool_)
    bools.flags.writeable = False
    return bools
