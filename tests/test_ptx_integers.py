"""Integer instructions of PTX against Python's integers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ptx_numbers import integer_edges, run, signed

WIDTHS = (16, 32, 64)
TYPES = [(letter, width) for width in WIDTHS for letter in "us"]


def _pairs(width: int, seed: int = 0) -> tuple[list[int], list[int]]:
    edges = integer_edges(width, np.random.default_rng(seed))
    rows = list(product(edges, edges))
    return [a for a, _ in rows], [b for _, b in rows]


def _triples(width: int, third: int | None = None) -> tuple[list[int], ...]:
    rng = np.random.default_rng(3)
    edges, others = integer_edges(width, rng, 4), integer_edges(third or width, rng, 4)
    picks = [rng.integers(0, len(edges), 600) for _ in range(3)]
    return [edges[i] for i in picks[0]], [edges[i] for i in picks[1]], [others[i] for i in picks[2]]


def _divide(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero and remainder; -1 and the dividend if b is zero."""
    if b == 0:
        return -1, a
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - b * quotient


ARITHMETIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "div": lambda a, b: _divide(a, b)[0],
    "rem": lambda a, b: _divide(a, b)[1],
    "min": min,
    "max": max,
}


@pytest.mark.parametrize(("letter", "width"), TYPES)
@pytest.mark.parametrize("name", [*ARITHMETIC, "mul.hi"])
def test_two_sources(name: str, letter: str, width: int):
    a, b = _pairs(width)
    view = (lambda x: signed(x, width)) if letter == "s" else (lambda x: x)
    function = ARITHMETIC.get(name, lambda x, y: x * y >> width)
    wanted = [function(view(x), view(y)) & ((1 << width) - 1) for x, y in zip(a, b, strict=True)]
    assert run(f"{name}.{letter}{width}", a, b) == wanted


@pytest.mark.parametrize(("letter", "width"), TYPES)
def test_products_with_a_sum(letter: str, width: int):
    a, b, c = _triples(width)
    view = (lambda x: signed(x, width)) if letter == "s" else (lambda x: x)
    mask = (1 << width) - 1
    rows = list(zip(a, b, c, strict=True))
    assert run(f"mad.lo.{letter}{width}", a, b, c) == [(x * y + z) & mask for x, y, z in rows]
    high = [((view(x) * view(y) >> width) + z) & mask for x, y, z in rows]
    assert run(f"mad.hi.{letter}{width}", a, b, c) == high


@pytest.mark.parametrize(("letter", "width"), [of for of in TYPES if of[1] < 64])
def test_wide_products(letter: str, width: int):
    a, b, c = _triples(width, 2 * width)
    view = (lambda x: signed(x, width)) if letter == "s" else (lambda x: x)
    mask = (1 << 2 * width) - 1
    products = [view(x) * view(y) for x, y in zip(a, b, strict=True)]
    assert run(f"mul.wide.{letter}{width}", a, b) == [x & mask for x in products]
    assert run(f"mad.wide.{letter}{width}", a, b, c) == [(x + z) & mask for x, z in zip(products, c, strict=True)]


@pytest.mark.parametrize("width", WIDTHS)
def test_one_source(width: int):
    a = integer_edges(width, np.random.default_rng(1), 40)
    mask = (1 << width) - 1
    assert run(f"neg.s{width}", a) == [-x & mask for x in a]
    assert run(f"abs.s{width}", a) == [abs(signed(x, width)) & mask for x in a]
    assert run(f"not.b{width}", a) == [x ^ mask for x in a]


@pytest.mark.parametrize("width", WIDTHS)
def test_logic(width: int):
    a, b = _pairs(width)
    assert run(f"and.b{width}", a, b) == [x & y for x, y in zip(a, b, strict=True)]
    assert run(f"or.b{width}", a, b) == [x | y for x, y in zip(a, b, strict=True)]
    assert run(f"xor.b{width}", a, b) == [x ^ y for x, y in zip(a, b, strict=True)]


AMOUNTS = [0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 2**31, 2**32 - 1]


@pytest.mark.parametrize("width", WIDTHS)
def test_shifts_clamp_the_amount(width: int):
    rows = list(product(integer_edges(width, np.random.default_rng(2)), AMOUNTS))
    a, b = [row[0] for row in rows], [row[1] for row in rows]
    limited = [(x, min(n, width)) for x, n in rows]
    mask = (1 << width) - 1
    assert run(f"shl.b{width}", a, b) == [x << n & mask for x, n in limited]
    assert run(f"shr.s{width}", a, b) == [signed(x, width) >> n & mask for x, n in limited]
    for letter in "ub":
        assert run(f"shr.{letter}{width}", a, b) == [x >> n for x, n in limited]


def test_funnel_shifts():
    rng = np.random.default_rng(4)
    edges = integer_edges(32, rng)
    rows = [(int(x), int(y), n) for x, y, n in product(rng.choice(edges, 6), rng.choice(edges, 6), AMOUNTS)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    for mode, limit in {"wrap": lambda n: n % 32, "clamp": lambda n: min(n, 32)}.items():
        left = [((b << 32 | a) << limit(n) >> 32) & 0xFFFFFFFF for a, b, n in rows]
        right = [(b << 32 | a) >> limit(n) & 0xFFFFFFFF for a, b, n in rows]
        assert run(f"shf.l.{mode}.b32", *columns) == left
        assert run(f"shf.r.{mode}.b32", *columns) == right


def _extract(a: int, position: int, length: int, width: int, letter: str) -> int:
    """bfe bit by bit, as the manual has it."""
    position, length = position & 255, length & 255
    sign = 0 if letter == "u" or length == 0 else a >> min(position + length - 1, width - 1) & 1
    bits = [a >> position + i & 1 if i < length and position + i < width else sign for i in range(width)]
    return sum(bit << i for i, bit in enumerate(bits))


def _insert(a: int, b: int, position: int, length: int, width: int) -> int:
    """bfi bit by bit, as the manual has it."""
    position, length = position & 255, length & 255
    for i in range(length):
        if position + i < width:
            b = b & ~(1 << position + i) | (a >> i & 1) << position + i
    return b


FIELDS = [0, 1, 3, 5, 28, 31, 32, 33, 63, 64, 65, 255, 256 + 4]


@pytest.mark.parametrize("width", [32, 64])
def test_bit_fields(width: int):
    rng = np.random.default_rng(5)
    values = integer_edges(width, rng)
    rows = [(values[rng.integers(len(values))], position, n) for position in FIELDS for n in FIELDS for _ in range(3)]
    a, position, length = (list(column) for column in zip(*rows, strict=True))
    for letter in "us":
        wanted = [_extract(*row, width, letter) for row in rows]
        assert run(f"bfe.{letter}{width}", a, position, length) == wanted
    b = a[::-1]
    wanted = [_insert(x, y, p, n, width) for x, y, p, n in zip(a, b, position, length, strict=True)]
    assert run(f"bfi.b{width}", a, b, position, length) == wanted


@pytest.mark.parametrize("width", [32, 64])
def test_counts_of_bits(width: int):
    rng = np.random.default_rng(6)
    a = integer_edges(width, rng, 60) + [1 << i for i in range(width)] + [(1 << i) - 1 for i in range(width)]
    mask = (1 << width) - 1
    assert run(f"popc.b{width}", a) == [x.bit_count() for x in a]
    assert run(f"clz.b{width}", a) == [width - x.bit_length() for x in a]
    assert run(f"brev.b{width}", a) == [int(f"{x:0{width}b}"[::-1], 2) for x in a]
    for letter in "us":
        sizes = [x ^ mask if letter == "s" and x >> (width - 1) else x for x in a]
        index = [x.bit_length() - 1 for x in sizes]
        assert run(f"bfind.{letter}{width}", a) == [i & 0xFFFFFFFF for i in index]
        amounts = [width - 1 - i if i >= 0 else 0xFFFFFFFF for i in index]
        assert run(f"bfind.shiftamt.{letter}{width}", a) == amounts


@pytest.mark.parametrize("table", [0xEA, 0x96, 0x80, 0xFE, 0x00, 0xFF, 0xF0, 0xCA, 0x1B])
def test_logic_of_three(table: int):
    from ptx.alu import operation

    rng = np.random.default_rng(table)
    a, b, c = (rng.integers(0, 2**32, 32, np.uint32) for _ in range(3))
    got = np.broadcast_to(operation("lop3.b32").function(a, b, c, np.uint32(table)), 32)
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        bits = [table >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1 for i in range(32)]
        assert result == sum(bit << i for i, bit in enumerate(bits))


def _permute(a: int, b: int, c: int) -> int:
    octets = (b << 32 | a).to_bytes(8, "little")
    chosen = [(octets[c >> 4 * i & 7], c >> 4 * i & 8) for i in range(4)]
    return int.from_bytes([255 * (x >> 7) if sign else x for x, sign in chosen], "little")


def test_permutation_of_bytes():
    rng = np.random.default_rng(8)
    a, b, c = ([int(x) for x in rng.integers(0, 2**32, 300)] for _ in range(3))
    c[:4] = [0x7701, 0x3210, 0x7654, 0xFEDC]
    assert run("prmt.b32", a, b, c) == [_permute(*row) for row in zip(a, b, c, strict=True)]


def _halves(function, a: int, b: int) -> int:
    return function(a & 0xFFFF, b & 0xFFFF) & 0xFFFF | (function(a >> 16, b >> 16) & 0xFFFF) << 16


def test_pairs_of_halves():
    a, b = _pairs(32)
    rows = list(zip(a, b, strict=True))
    for letter in "us":
        view = (lambda x: signed(x, 16)) if letter == "s" else (lambda x: x)
        assert run(f"add.{letter}16x2", a, b) == [_halves(lambda x, y: x + y, *row) for row in rows]
        assert run(f"sub.{letter}16x2", a, b) == [_halves(lambda x, y: x - y, *row) for row in rows]
        for name, function in {"min": min, "max": max}.items():
            wanted = [_halves(lambda x, y, v=view, f=function: f(v(x), v(y)), *row) for row in rows]
            assert run(f"{name}.{letter}16x2", a, b) == wanted


def test_saturating_sums():
    a, b = _pairs(32)
    for name, sign in {"add": 1, "sub": -1}.items():
        exact = [signed(x, 32) + sign * signed(y, 32) for x, y in zip(a, b, strict=True)]
        wanted = [max(-(2**31), min(2**31 - 1, x)) & 0xFFFFFFFF for x in exact]
        assert run(f"{name}.sat.s32", a, b) == wanted
