"""Numbers for the tests of PTX's arithmetic: values at the edges, and roundings in fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from ptx.alu import operation

DTYPES = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
FULL = 0xFFFFFFFF


class Format(NamedTuple):
    """A binary float of IEEE 754: how many bits its exponent and its fraction have."""

    exponent: int
    fraction: int

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.fraction

    @property
    def smallest(self) -> int:
        """The exponent of the smallest normal number."""
        return 2 - (1 << (self.exponent - 1))

    @property
    def one(self) -> int:
        return -self.smallest + 1 << self.fraction


FORMATS = {"f16": Format(5, 10), "bf16": Format(8, 7), "f32": Format(8, 23), "f64": Format(11, 52)}


def decode(bits: int, of: Format) -> Fraction | float:
    """The value of a float's bits; an infinity or a NaN is a Python float, and so is -0."""
    size = bits & (of.sign - 1)
    sign = -1 if bits & of.sign else 1
    if size > of.infinity:
        return math.nan
    if size == of.infinity:
        return sign * math.inf
    if size == 0:
        return -0.0 if sign < 0 else Fraction(0)
    exponent, fraction = size >> of.fraction, size & ((1 << of.fraction) - 1)
    if exponent:
        fraction, exponent = fraction | 1 << of.fraction, exponent - 1
    return sign * fraction * Fraction(2) ** (exponent + of.smallest - of.fraction)


def encode(x: Fraction | float, of: Format, mode: str = "rn") -> int:
    """The bits of a value, rounded once; a NaN has all bits but the sign."""
    if isinstance(x, float) and (math.isnan(x) or math.isinf(x) or x == 0):
        bits = of.sign - 1 if math.isnan(x) else of.infinity if math.isinf(x) else 0
        return bits | (of.sign if not math.isnan(x) and math.copysign(1, x) < 0 else 0)
    x = Fraction(x)
    size, negative = abs(x), x < 0
    if not size:
        return 0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    exponent = max(exponent, of.smallest)
    steps, rest = divmod(size, Fraction(2) ** (exponent - of.fraction))
    outward = mode == ("rm" if negative else "rp")
    if mode == "rn":
        steps += rest > Fraction(1, 2) * Fraction(2) ** (exponent - of.fraction) or (
            rest == Fraction(1, 2) * Fraction(2) ** (exponent - of.fraction) and steps % 2
        )
    elif outward and rest:
        steps += 1
    bits = (exponent - of.smallest << of.fraction) + steps
    if bits >= of.infinity:
        bits = of.infinity if outward or mode == "rn" else of.infinity - 1
    return bits | (of.sign if negative else 0)


def float_edges(of: Format, rng: np.random.Generator, count: int = 12) -> list[int]:
    """The bits of zeros, subnormals, ones, extremes, infinities, a NaN, and of count random values."""
    fraction = (1 << of.fraction) - 1
    sizes = [0, 1, 2, fraction, fraction + 1, fraction + 2, of.one - 1, of.one, of.one + 1]
    sizes += [of.one | 1 << (of.fraction - 1), of.infinity - 1, of.infinity, of.infinity | 1 << (of.fraction - 1)]
    random = [int(x) & (2 * of.sign - 1) for x in rng.integers(0, 2**64, count, np.uint64)]
    return sizes + [size | of.sign for size in sizes] + random


def integer_edges(width: int, rng: np.random.Generator, count: int = 12) -> list[int]:
    """0, 1, -1, the extremes, amounts of shifts, and count random values, as unsigned ints."""
    top, mask = 1 << (width - 1), (1 << width) - 1
    edges = [0, 1, 2, 3, 31, 32, 33, 63, 64, 255, mask, mask - 1, top, top - 1, top + 1, 0x5555]
    return edges + [int(x) & mask for x in rng.integers(0, 2**64, count, np.uint64)]


def signed(x: int, width: int) -> int:
    """The two's complement value of an unsigned int."""
    return x - (1 << width) if x >> (width - 1) else x


def run(opcode: str, *columns: Sequence[int]) -> list[int]:
    """What the instruction gives for every row of the columns, 32 rows at a time."""
    function, sources, result = operation(opcode)
    rows = len(columns[0])
    results: list[int] = []
    for start in range(0, rows, 32):
        values = []
        for kind, column in zip(sources, columns, strict=True):
            part = [*column[start : start + 32], *[column[0]] * 32][:32]
            values.append(_mask(part) if kind == "pred" else np.array(part, DTYPES[kind]))
        before = [value if isinstance(value, int) else value.copy() for value in values]
        with np.errstate(all="ignore"):
            out = function(*values)
        assert all(np.array_equal(old, new) for old, new in zip(before, values, strict=True)), opcode
        results += _lanes(out, result, opcode)
    return results[:rows]


def _mask(bools: Sequence[int]) -> int:
    return sum(1 << i for i, bit in enumerate(bools) if bit)


def _lanes(out, kind: str, opcode: str) -> list[int]:
    if kind == "pred":
        assert isinstance(out, int) and 0 <= out <= FULL, opcode
        return [out >> i & 1 for i in range(32)]
    assert out.dtype == DTYPES[kind], (opcode, out.dtype)
    return [int(x) for x in np.broadcast_to(out, 32)]
