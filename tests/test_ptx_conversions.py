"""Conversions of PTX against integers, and fractions that are rounded once."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from ptx_numbers import FORMATS, decode, encode, float_edges, integer_edges, run, signed

INTEGERS = [letter + str(width) for width in (8, 16, 32, 64) for letter in "us"]
MODES = ["rn", "rz", "rm", "rp"]
NARROWER = [("f64", "f32"), ("f64", "f16"), ("f64", "bf16"), ("f32", "f16"), ("f32", "bf16")]


def _value(bits: int, name: str) -> int:
    width = int(name[1:])
    bits &= (1 << width) - 1
    return signed(bits, width) if name[0] == "s" else bits


def _register(value: int, name: str) -> int:
    """An integer in the narrowest register that holds the type: a byte is extended to 16 bits."""
    width = int(name[1:])
    bits = value & ((1 << width) - 1)
    return _value(bits, name) & ((1 << max(width, 16)) - 1)


@pytest.mark.parametrize("source", INTEGERS)
def test_integers(source: str):
    a = integer_edges(max(16, int(source[1:])), np.random.default_rng(0), 40)
    for target in INTEGERS:
        wanted = [_register(_value(x, source), target) for x in a]
        assert run(f"cvt.{target}.{source}", a) == wanted
        width, low = int(target[1:]), 0
        high = (1 << width) - 1
        if target[0] == "s":
            low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        wanted = [_register(max(low, min(high, _value(x, source))), target) for x in a]
        assert run(f"cvt.sat.{target}.{source}", a) == wanted


def test_a_source_may_lie_in_a_wider_register():
    from ptx.alu import operation

    a = np.arange(0, 2**32, 2**27 + 0x1234567, np.uint32)
    bytes_of = [signed(int(x) & 0xFF, 8) & 0xFFFFFFFF for x in a]
    assert operation("cvt.s32.s8").function(a).tolist() == bytes_of
    assert operation("cvt.u64.u32").function(a.astype(np.uint64) * np.uint64(5)).tolist() == [
        int(x) * 5 & 0xFFFFFFFF for x in a
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FORMATS)
def test_integers_as_floats(name: str, mode: str):
    rng = np.random.default_rng(1)
    for source in INTEGERS:
        width = int(source[1:])
        a = integer_edges(max(width, 16), rng, 20)
        a += [(1 << i) + step & ((1 << max(width, 16)) - 1) for i in range(8, width) for step in (-1, 1)]
        a += [(1 << 24) + 1, (1 << 24) + 3, (1 << 53) + 1, (1 << 53) + 3, (2**24 + 1 << 30) + 1] if width > 53 else []
        wanted = [encode(Fraction(_value(x, source)), FORMATS[name], mode) for x in a]
        assert run(f"cvt.{mode}.{name}.{source}", a) == wanted, source


ROUNDING = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def _limits(name: str) -> tuple[int, int]:
    width = int(name[1:])
    return (0, (1 << width) - 1) if name[0] == "u" else (-(1 << (width - 1)), (1 << (width - 1)) - 1)


def _whole(value: Fraction | float, rounding, source: str, target: str) -> int:
    low, high = _limits(target)
    if math.isnan(value):
        return 1 << (int(target[1:]) - 1) if source == "f64" or target[1:] == "64" else 0
    if math.isinf(value):
        return high if value > 0 else low
    return max(low, min(high, rounding(value)))


def _near_limits(of) -> list[int]:
    """Halves, and numbers next to the limits of all integer types."""
    values = [Fraction(n, 2) for n in range(-9, 10)]
    values += [sign * Fraction(2) ** n for n in (7, 8, 15, 16, 31, 32, 63, 64) for sign in (1, -1)]
    bits = [encode(value, of) for value in values]
    return [x + step for x in bits for step in (-1, 0, 1) if x & (of.sign - 1)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ROUNDING)
def test_floats_as_integers(mode: str, name: str):
    of = FORMATS[name]
    a = float_edges(of, np.random.default_rng(2), 20) + _near_limits(of)
    for target in INTEGERS:
        wanted = [_register(_whole(decode(x, of), ROUNDING[mode], name, target), target) for x in a]
        assert run(f"cvt.{mode}.{target}.{name}", a) == wanted, target


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ROUNDING)
def test_floats_rounded_to_integral_floats(mode: str, name: str):
    of = FORMATS[name]
    a = float_edges(of, np.random.default_rng(3), 20) + _near_limits(of)
    for bits, x in zip(run(f"cvt.{mode}.{name}.{name}", a), a, strict=True):
        value = decode(x, of)
        if math.isfinite(value):
            whole = ROUNDING[mode](value)
            assert bits == (encode(Fraction(whole), of) | (x & of.sign if whole == 0 else 0))
        else:
            assert bits == encode(value, of)


def _ties(wide, narrow) -> list[int]:
    """Bits of the wide format at, and next to, the middles between neighbours of the narrow one."""
    rng = np.random.default_rng(4)
    sizes = [0, 1, 2, (1 << narrow.fraction) - 1, 1 << narrow.fraction, narrow.one, narrow.infinity - 1]
    sizes += [int(x) for x in rng.integers(0, narrow.infinity - 1, 30)]
    bits = []
    for size in sizes:
        value = decode(size, narrow)
        top = decode(size + 1, narrow)
        step = value - decode(size - 1, narrow) if math.isinf(top) else top - value
        middle = encode(value + step / 2, wide)
        bits += [middle - 1, middle, middle + 1, middle | wide.sign, middle + 1 | wide.sign]
    return bits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("source", "target"), NARROWER)
def test_narrower_floats(source: str, target: str, mode: str):
    wide, narrow = FORMATS[source], FORMATS[target]
    a = float_edges(wide, np.random.default_rng(5), 60) + _ties(wide, narrow)
    wanted = [encode(decode(x, wide), narrow, mode) for x in a]
    assert run(f"cvt.{mode}.{target}.{source}", a) == wanted
    if source == "f32":
        b = a[::-1]
        pairs = [low | high << 16 for high, low in zip(wanted, wanted[::-1], strict=True)]
        assert run(f"cvt.{mode}.{target}x2.f32", a, b) == pairs


@pytest.mark.parametrize(("source", "target"), NARROWER)
def test_wider_floats(source: str, target: str):
    wide, narrow = FORMATS[source], FORMATS[target]
    a = float_edges(narrow, np.random.default_rng(6), 200)
    assert run(f"cvt.{source}.{target}", a) == [encode(decode(x, narrow), wide) for x in a]


def test_flushed_conversions():
    a = float_edges(FORMATS["f32"], np.random.default_rng(7), 20)
    flushed = [x if x & FORMATS["f32"].infinity else x & 0x80000000 for x in a]
    assert run("cvt.ftz.f64.f32", a) == run("cvt.f64.f32", flushed)
    assert run("cvt.rpi.ftz.s32.f32", a) == run("cvt.rpi.s32.f32", flushed)
    b = float_edges(FORMATS["f64"], np.random.default_rng(7), 20) + [encode(Fraction(2) ** -140, FORMATS["f64"])]
    wanted = [x if x & FORMATS["f32"].infinity else x & 0x80000000 for x in run("cvt.rn.f32.f64", b)]
    assert run("cvt.rn.ftz.f32.f64", b) == wanted


def test_the_fractions_agree_with_struct():
    """The tests' own decoding and rounding, against the C library's."""
    rng = np.random.default_rng(8)
    for name, code in {"f16": "e", "f32": "f", "f64": "d"}.items():
        of = FORMATS[name]
        for x in float_edges(of, rng, 100):
            (value,) = struct.unpack(f"<{code}", x.to_bytes(of.width // 8, "little"))
            if math.isnan(value):
                assert math.isnan(decode(x, of))
                continue
            assert decode(x, of) == value and encode(value, of) == x
            halves = struct.pack("<f", value) if abs(value) < 3e38 else b""
            assert not halves or int.from_bytes(halves, "little") == encode(value, FORMATS["f32"])
