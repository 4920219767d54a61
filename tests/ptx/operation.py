"""What an arithmetic instruction is, and the types that its mnemonic can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Operation(NamedTuple):
    """A pure function of one arithmetic instruction.

    function: takes one value per source. A value of kind "b16", "b32" or "b64" is an array of shape (32,), or a
    scalar for all lanes, of dtype uint16, uint32 or uint64; one of kind "pred" is an int mask. It returns a new
    array of the result's dtype, of shape (32,) or one that broadcasts to it, or an int mask.
    """

    function: Callable
    sources: tuple[str, ...]
    result: str


class Type(NamedTuple):
    """A type of PTX. kind: of the registers that hold it. register: their dtype. number: dtype of the value."""

    kind: str
    width: int
    register: type
    number: type


KINDS = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
UNSIGNED = {f"u{width}": Type(f"b{width}", width, KINDS[f"b{width}"], KINDS[f"b{width}"]) for width in (16, 32, 64)}
SIGNED = {
    "s16": Type("b16", 16, np.uint16, np.int16),
    "s32": Type("b32", 32, np.uint32, np.int32),
    "s64": Type("b64", 64, np.uint64, np.int64),
}
INTEGERS = UNSIGNED | SIGNED
BYTES = {"u8": Type("b16", 8, np.uint16, np.uint8), "s8": Type("b16", 8, np.uint16, np.int8)}
UNTYPED = {name.replace("u", "b"): of for name, of in UNSIGNED.items()}
FLOATS = {"f32": Type("b32", 32, np.uint32, np.float32), "f64": Type("b64", 64, np.uint64, np.float64)}

Table = dict[str, Operation]
