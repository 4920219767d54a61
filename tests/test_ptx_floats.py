"""Float instructions of PTX against fractions that are rounded once."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from ptx_numbers import FORMATS, Format, decode, encode, float_edges, run

WIDE = ["f32", "f64"]
ALL = [*WIDE, "f16", "bf16"]


def _pairs(of: Format) -> tuple[list[int], list[int]]:
    rows = list(product(float_edges(of, np.random.default_rng(0)), repeat=2))
    return [a for a, _ in rows], [b for _, b in rows]


def _sum(x: Fraction | float, y: Fraction | float) -> Fraction | float:
    """x + y, with the zeros, infinities and NaNs of IEEE 754."""
    if not _finite(x) or not _finite(y):
        return y if _finite(x) else x if _finite(y) else x + y
    return -0.0 if _negative(x) and _negative(y) and x == y == 0 else Fraction(x) + Fraction(y)


def _finite(x: Fraction | float) -> bool:
    return isinstance(x, Fraction) or math.isfinite(x)


def _negative(x: Fraction | float) -> bool:
    return math.copysign(1, x) < 0 if isinstance(x, float) else x < 0


def _product(x: Fraction | float, y: Fraction | float) -> Fraction | float:
    if not math.isfinite(x) or not math.isfinite(y) or x == 0 or y == 0:
        return _sign(x) * _sign(y)
    return Fraction(x) * Fraction(y)


def _sign(x: Fraction | float) -> float:
    """x itself if it is zero, infinite or NaN, else 1 or -1: enough for the rules of products."""
    return float(x) if x == 0 or not math.isfinite(x) else math.copysign(1.0, -1 if x < 0 else 1)


def _quotient(x: Fraction | float, y: Fraction | float) -> Fraction | float:
    if math.isnan(x) or math.isnan(y) or (x == 0 == y) or (math.isinf(x) and math.isinf(y)):
        return math.nan
    sign = -1.0 if _negative(x) != _negative(y) else 1.0
    if math.isinf(x) or y == 0:
        return sign * math.inf
    return sign * 0.0 if x == 0 or math.isinf(y) else Fraction(x) / Fraction(y)


BINARY = {
    "add": _sum,
    "sub": lambda x, y: _sum(x, -y if y else -float(y)),
    "mul": _product,
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("key", BINARY)
def test_sums_and_products(name: str, key: str):
    of = FORMATS[name]
    a, b = _pairs(of)
    wanted = [encode(BINARY[key](decode(x, of), decode(y, of)), of) for x, y in zip(a, b, strict=True)]
    assert run(f"{key}.{name}", a, b) == wanted
    assert run(f"{key}.rn.{name}", a, b) == wanted


@pytest.mark.parametrize("name", WIDE)
def test_quotients(name: str):
    of = FORMATS[name]
    a, b = _pairs(of)
    wanted = [encode(_quotient(decode(x, of), decode(y, of)), of) for x, y in zip(a, b, strict=True)]
    assert run(f"div.rn.{name}", a, b) == wanted
    wanted = [encode(_quotient(Fraction(1), decode(x, of)), of) for x in b[:40]]
    assert run(f"rcp.rn.{name}", b[:40]) == wanted


@pytest.mark.parametrize("name", WIDE)
def test_square_roots(name: str):
    of = FORMATS[name]
    a = float_edges(of, np.random.default_rng(1), 200)
    for x, bits in zip(a, run(f"sqrt.rn.{name}", a), strict=True):
        value = decode(x, of)
        if value == 0 or not math.isfinite(value) or value < 0:
            assert bits == (encode(math.nan, of) if math.isnan(value) or value < 0 else x)
            continue
        below, root, above = (decode(bits + step, of) for step in (-1, 0, 1))
        assert ((below + root) / 2) ** 2 < value < ((root + above) / 2) ** 2


def _fused(x: Fraction | float, y: Fraction | float, z: Fraction | float) -> Fraction | float:
    return _sum(_product(x, y), z)


def _hard_triples(of: Format, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Products at, or next to, the middle of two floats, and a small third number; and cancellations."""
    rows = []
    half, one, last = 1 << (of.fraction // 2), of.one, of.fraction
    middles = [(one | half, one | (1 << (last - of.fraction // 2 - 1))), (one | 1, one | 1 << (last - 1))]
    for a, b in middles:
        for shift in range(0, of.one >> of.fraction, 3):
            c = one - (shift << of.fraction) | int(rng.integers(0, 2))
            rows += [(a, b, c), (a, b, c | of.sign), (a | of.sign, b, c)]
            lower = (of.one >> of.fraction) // 2 << of.fraction  # the product is near the smallest numbers
            rows += [(a - lower, b - lower + (shift % 5 << last), c), (a - lower, b - lower, c >> 2 | of.sign)]
    little, low = Fraction(1, 1 << last), (of.smallest - last - 1) // 2
    a = encode((1 + little) * Fraction(2) ** low, of)
    b = encode((1 - little) * Fraction(2) ** (of.smallest - last - 1 - low), of)
    rows += [(a, b, 1 << i | 1) for i in range(1, last)]  # just below the middle of two subnormals
    for _ in range(400):
        a, b = (one + int(x) for x in rng.integers(-(8 << last), 8 << last, 2))
        exact = decode(a, of) * decode(b, of)
        near = encode(-exact, of)
        rows.append((a, b, near + int(rng.integers(-2, 3))))
        rows.append((a, b, near - (int(rng.integers(0, last)) << last)))
    return rows


def _random_triples(of: Format, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    edges = float_edges(of, rng, 14)
    picks = rng.integers(0, len(edges), (1200, 3))
    return [tuple(edges[i] for i in row) for row in picks]


@pytest.mark.parametrize("name", ALL)
def test_fused_products_are_rounded_once(name: str):
    of = FORMATS[name]
    rng = np.random.default_rng(2)
    rows = _hard_triples(of, rng) + _random_triples(of, rng)
    wanted = [encode(_fused(*(decode(x, of) for x in row)), of) for row in rows]
    got = run(f"fma.rn.{name}", *(list(column) for column in zip(*rows, strict=True)))
    assert [row for row, x, y in zip(rows, got, wanted, strict=True) if x != y] == []
    alone = [run(f"fma.rn.{name}", *([x] for x in row))[0] for row in rows]  # no other lane asks for more care
    assert alone == wanted


def test_a_product_and_a_sum_would_be_rounded_twice():
    """The hard cases are hard: two roundings give something else."""
    for name in WIDE:
        of = FORMATS[name]
        rows = _hard_triples(of, np.random.default_rng(2))
        columns = [list(column) for column in zip(*rows, strict=True)]
        twice = run(f"add.{name}", run(f"mul.{name}", *columns[:2]), columns[2])
        assert sum(x != y for x, y in zip(twice, run(f"fma.rn.{name}", *columns), strict=True)) > 100


def _larger(x: int, y: int, of: Format, sign: int, propagate: bool) -> int:
    """max (sign 1) or min (sign -1) of bits: a NaN loses, or wins if it propagates, and -0 is less than +0."""
    values = [(decode(bits, of), bits) for bits in (x, y)]
    numbers = [pair for pair in values if not math.isnan(pair[0])]
    if len(numbers) < 2 and (propagate or not numbers):
        return of.sign - 1
    return max(numbers, key=lambda pair: (sign * pair[0], -sign * (pair[1] & of.sign)))[1]


@pytest.mark.parametrize("name", ALL)
def test_extremes(name: str):
    of = FORMATS[name]
    a, b = _pairs(of)
    for key, sign in {"max": 1, "min": -1}.items():
        wanted = [_larger(x, y, of, sign, False) for x, y in zip(a, b, strict=True)]
        assert run(f"{key}.{name}", a, b) == wanted
        if name != "f64":
            wanted = [_larger(x, y, of, sign, True) for x, y in zip(a, b, strict=True)]
            assert run(f"{key}.NaN.{name}", a, b) == wanted


@pytest.mark.parametrize("name", ALL)
def test_signs(name: str):
    of = FORMATS[name]
    a = float_edges(of, np.random.default_rng(3), 40)
    assert run(f"neg.{name}", a) == [x ^ of.sign for x in a]
    assert run(f"abs.{name}", a) == [x & (of.sign - 1) for x in a]
    if name in WIDE:
        b = a[::-1]
        assert run(f"copysign.{name}", a, b) == [x & of.sign | y & (of.sign - 1) for x, y in zip(a, b, strict=True)]


def _flush(bits: int) -> int:
    return bits if bits & FORMATS["f32"].infinity else bits & 0x80000000


@pytest.mark.parametrize("opcode", ["add.f32", "mul.rn.f32", "fma.rn.f32", "max.f32", "div.rn.f32", "max.NaN.f32"])
def test_flushing(opcode: str):
    a, b = _pairs(FORMATS["f32"])
    columns = [a, b, b[::-1]][: 3 if opcode.startswith("fma") else 2]
    flushed = [[_flush(x) for x in column] for column in columns]
    name = opcode.replace(".NaN.f32", ".ftz.NaN.f32") if "NaN" in opcode else opcode.replace(".f32", ".ftz.f32")
    assert run(name, *columns) == [_flush(x) for x in run(opcode, *flushed)]


def test_saturation():
    a, b = _pairs(FORMATS["f32"])
    of = FORMATS["f32"]
    for bits, clamped in zip(run("add.f32", a, b), run("add.sat.f32", a, b), strict=True):
        value = decode(bits, of)
        assert clamped == (encode(min(value, Fraction(1)), of) if value > 0 else 0)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_pairs_of_halves(name: str):
    of = FORMATS[name]
    a, b = _pairs(of)
    c = a[::-1]
    for key, columns in {"add": (a, b), "sub": (a, b), "mul": (a, b), "max": (a, b), "fma.rn": (a, b, c)}.items():
        single = run(f"{key}.{name}", *columns)
        pairs = [[x | y << 16 for x, y in zip(column, column[1:], strict=False)] for column in columns]
        wanted = [x | y << 16 for x, y in zip(single, single[1:], strict=False)]
        assert run(f"{key}.{name}x2", *pairs) == wanted
