"""Arithmetic of f16 and bf16, and of pairs of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .operation import Operation, Table
from .rounding import add, narrow

NAN = np.uint16(0x7FFF)
SIGN = np.uint16(0x8000)
UPPER = np.uint32(16)


class Half(NamedTuple):
    """A format of 16 bits. widen: registers to float64. narrow: float64 to registers, in a mode of rounding."""

    widen: Callable
    narrow: Callable


def widen_f16(a):
    """Registers of f16 as float64."""
    return a.view(np.float16).astype(np.float64)


def narrow_f16(x, mode: str = "rn"):
    """Floats of 32 or 64 bits as registers of f16."""
    half = narrow(x, np.float16, mode)
    lost = np.isnan(half)
    return np.where(lost, NAN, half.view(np.uint16)) if np.count_nonzero(lost) else half.view(np.uint16)


def widen_bf16(a):
    """Registers of bf16 as float64."""
    return (a.astype(np.uint32) << UPPER).view(np.float32).astype(np.float64)


def narrow_bf16(x, mode: str = "rn"):
    """float64 as registers of bf16."""
    bits = narrow(x, np.float32, "odd").view(np.uint32)  # rounded once more below
    sign = bits >> np.uint32(31)
    if mode == "rn":
        carry = np.uint32(0x7FFF) + (bits >> UPPER & np.uint32(1))
    else:
        outward = {"rz": 0, "rm": sign, "rp": sign ^ np.uint32(1)}[mode]
        carry = np.uint32(0xFFFF) * outward
    return np.where(np.isnan(x), NAN, ((bits + carry) >> UPPER).astype(np.uint16))


HALVES = {"f16": Half(widen_f16, narrow_f16), "bf16": Half(widen_bf16, narrow_bf16)}


def pack(low, high):
    """Two registers of 16 bits as one of 32."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << UPPER)


def in_pairs(function: Callable) -> Callable:
    """The function of halves applied to both halves of its sources."""

    def both(*sources):
        low = function(*[source.astype(np.uint16) for source in sources])
        return pack(low, function(*[(source >> UPPER).astype(np.uint16) for source in sources]))

    return both


def _rounded(half: Half) -> dict[str, tuple[Callable, int]]:
    """The functions that round, and how many sources they have."""

    def on_floats(function: Callable) -> Callable:
        return lambda *sources: half.narrow(function(*[half.widen(source) for source in sources]))

    return {
        "add": (on_floats(lambda x, y: add(x, y, "odd")), 2),
        "sub": (on_floats(lambda x, y: add(x, -y, "odd")), 2),
        "mul": (on_floats(np.multiply), 2),  # exact in float64
        "fma": (on_floats(lambda x, y, z: add(x * y, z, "odd")), 3),
    }


def _extreme(half: Half, function: Callable, largest: bool) -> Callable:
    """max and min. function: of numpy, which says what becomes of a NaN. -0 is less than +0."""

    def extreme(a, b):
        x, y = half.widen(a), half.widen(b)
        ties = a & b if largest else a | b
        return np.where(x == y, ties, half.narrow(function(x, y)))

    return extreme


def _functions(half: Half) -> dict[str, tuple[Callable, int]]:
    """All functions of a format by the opcode without its type, and how many sources they have."""
    rounded = _rounded(half)
    table = rounded | {f"{name}.rn": function for name, function in rounded.items()}
    del table["fma"]
    table |= {
        "max": (_extreme(half, np.fmax, True), 2),
        "min": (_extreme(half, np.fmin, False), 2),
        "max.NaN": (_extreme(half, np.maximum, True), 2),
        "min.NaN": (_extreme(half, np.minimum, False), 2),
        "neg": (lambda a: a ^ SIGN, 1),
        "abs": (lambda a: a & NAN, 1),
    }
    return table


def operations() -> Table:
    """All instructions of this file."""
    table: Table = {}
    for name, half in HALVES.items():
        for key, (function, count) in _functions(half).items():
            table[f"{key}.{name}"] = Operation(function, ("b16",) * count, "b16")
            table[f"{key}.{name}x2"] = Operation(in_pairs(function), ("b32",) * count, "b32")
    return table
