"""How tensor cores add, in numpy: equal to the bit to exact fractions and to the CUDA sources' own simulation."""

from __future__ import annotations

from fractions import Fraction
from math import frexp

import numpy as np
import pytest
from ptx.products import RULES, Rule, multiply_add, rule_of

RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
KINDS = ["normal", "positive", "spread", "one large", "cancelling", "subnormal", "any bits", "zeros"]
SUMS = ["none", "normal", "large", "small", "subnormal", "zeros"]
NAN, INFINITY = 0x7FFFFFFF, 0x7F800000


def cut(value: Fraction, unit: Fraction) -> Fraction:
    return int(value / unit) * unit  # int() rounds towards zero


def exponent(value: float, least: int) -> int:
    return max(frexp(value)[1] - 1, least)


def by_fractions(a: list[float], b: list[float], c: float, rule: Rule, least: int) -> Fraction:
    """One element of the sum. `least` is the exponent of the smallest normal number of the factors' type."""
    total = Fraction(c)
    for start in range(0, len(a), rule.block):
        part = slice(start, start + rule.block)
        pairs = [(x, y) for x, y in zip(a[part], b[part], strict=True) if x and y]
        terms = [(Fraction(x) * Fraction(y), exponent(x, least) + exponent(y, least)) for x, y in pairs]
        if total:
            terms.append((total, exponent(float(total), -126)))
        if terms:
            unit = Fraction(2) ** (max(e for _, e in terms) - rule.bits)
            total = sum((cut(value, unit) for value, _ in terms), Fraction(0))
        if total:
            # A double does for the exponent: it has more places than any sum here.
            total = cut(total, Fraction(2) ** (exponent(float(total), -126) - 23))
    return total


def halves(kind: str, g: np.random.Generator, rows: int, k: int) -> np.ndarray:
    x = g.standard_normal((rows, k))
    if kind == "any bits":  # every finite half
        return (g.integers(0, 0x7C00, (rows, k)) | g.integers(0, 2, (rows, k)) << 15).astype(np.uint16).view(np.float16)
    if kind == "positive":
        x = abs(x)
    elif kind == "spread":
        x *= 2.0 ** g.integers(-18, 8, (rows, k))
    elif kind == "one large":
        x[:, 3] *= 4096
    elif kind == "cancelling":
        x[:, 1::2] = x[:, ::2] * np.where(np.arange(rows)[:, None] % 2, 1, -1)
    elif kind == "subnormal":
        x *= 2.0**-16
    elif kind == "zeros":
        x[:, g.integers(0, 2, k) == 1] = 0
        x[: rows // 2] = -0.0
    return x.astype(np.float16)


def sums(kind: str, g: np.random.Generator, shape: tuple[int, int]) -> np.ndarray | None:
    scale = {"none": 0, "normal": 1, "large": 2.0**120, "small": 2.0**-110, "subnormal": 2.0**-130, "zeros": 0}[kind]
    return None if kind == "none" else (g.standard_normal(shape) * scale).astype(np.float32)  # zeros of both signs


def assert_equals_fractions(a: np.ndarray, b: np.ndarray, c: np.ndarray | None, rule: Rule, least: int) -> None:
    found = multiply_add(a, b, c, rule)
    assert found.dtype == np.float32 and found.shape == (len(a), len(b))
    start = np.zeros(found.shape) if c is None else c.astype(float)
    expected = [
        [float(by_fractions(x, y, z, rule, least)) for y, z in zip(b.tolist(), zs, strict=True)]
        for x, zs in zip(a.tolist(), start.tolist(), strict=True)
    ]
    assert np.array_equal(found.view(np.uint32), np.array(expected, np.float32).view(np.uint32))


@RULE
@pytest.mark.parametrize("sum_kind", SUMS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_fractions(kind, sum_kind, rule):
    g = np.random.default_rng([KINDS.index(kind), SUMS.index(sum_kind), rule.bits])
    for k in (8, 16, 40):
        a, b = halves(kind, g, 4, k), halves(kind, g, 6, k)
        assert_equals_fractions(a, b, sums(sum_kind, g, (4, 6)), rule, -14)


@RULE
@pytest.mark.parametrize("scale", [0, -60, -63, -66, -70, -75, -100])
def test_equals_fractions_in_bf16(scale, rule):
    """Down to where the products, the sums and the factors (below 2^-126) are subnormal."""
    g = np.random.default_rng([-scale, rule.bits])
    for sum_kind in ("none", "normal", "small", "subnormal"):
        a, b = ((g.standard_normal((rows, 32)) * 2.0**scale).astype(np.float32) for rows in (4, 6))
        if scale == -100:
            a *= np.float32(2.0**-30)
            b *= np.float32(2.0**100)
        a, b = ((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for x in (a, b))
        assert_equals_fractions(a, b, sums(sum_kind, g, (4, 6)), rule, -126)


@RULE
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_simulation_of_the_cuda_sources(kind, rule):
    from pez_fast import info

    if (reason := info("cpu")["implementations"]["cpu"]) is not True:
        pytest.skip(reason)
    from pez_fast import _C

    g = np.random.default_rng([KINDS.index(kind), rule.bits])
    queries, tokens = halves(kind, g, 16, 512), halves(kind, g, 128, 512)
    if kind == "any bits":  # the simulation holds scores below 4: factors below 2^-4
        queries, tokens = ((x.view(np.uint16) & np.uint16(0xABFF)).view(np.float16) for x in (queries, tokens))
    elif kind != "subnormal":
        queries, tokens = (
            (x / np.linalg.norm(x.astype(float), axis=1, keepdims=True).clip(1e-9)).astype(np.float16)
            for x in (queries, tokens)
        )
    scores = np.empty((16, 128), np.float32)
    for query, score in zip(queries, scores, strict=True):
        _C.add_as_tensor_cores(query.ctypes.data, tokens.ctypes.data, 512, tuple(rule), score.ctypes.data)
    whole = multiply_add(queries, tokens, None, rule)
    assert np.array_equal(whole.view(np.uint32), scores.view(np.uint32))
    steps = None
    for start in range(0, 512, 16):  # instruction after instruction
        steps = multiply_add(queries[:, start : start + 16], tokens[:, start : start + 16], steps, rule)
    assert np.array_equal(steps.view(np.uint32), scores.view(np.uint32))


def dot(pairs: list[tuple[float, float]], c: float, rule: Rule, k: int = 16) -> float:
    a, b = np.zeros((2, 1, k), np.float16)
    a[0, : len(pairs)], b[0, : len(pairs)] = zip(*pairs, strict=True)
    return float(multiply_add(a, b, np.array([[c]], np.float32), rule)[0, 0])


def test_by_hand():
    ampere, hopper = RULES["ampere"], RULES["hopper"]
    tiny = (2.0**-12, 2.0**-13)
    assert dot([tiny] * 4, 1, ampere) == 1  # each lies below 2^-24
    assert dot([tiny] * 4, 1, hopper) == 1 + 2.0**-23
    assert dot([tiny] * 3, 1, hopper) == 1  # the sum is cut, not rounded
    assert dot([tiny] * 3, -1, hopper) == -1 + 2.0**-23  # towards zero, in both signs
    assert dot([(1.5, 1.5)] + [tiny] * 8, 0, hopper) == 2.25 + 2.0**-22  # 2.25 counts as 1.5 * 1.5, with exponent 0
    assert dot([(1, 1)] + [(2.0**-12, 2.0**-12)] * 2, 0, ampere) == 1 + 2.0**-23
    later = [(1, 1)] + [(0, 0)] * 7 + [(1, -1), tiny]
    assert dot(later, 0, ampere) == 0  # the second eight see the sum of the first, 1, and keep 24 places
    assert dot(later, 0, hopper) == 2.0**-25


@pytest.mark.parametrize("rule", [*RULES.values(), Rule(32, 26), Rule(16, 40)])
def test_the_largest_sums(rule):
    """Every significand is as large as can be, so that a block counts the most units."""
    largest = np.full((2, 64), 2 - 2.0**-10, np.float16)
    largest[1] *= -1
    assert_equals_fractions(largest, largest, None, rule, -14)


@RULE
def test_zero_products_change_no_sum(rule):
    """Whatever its exponent. An odd number of products: wrong ones may not cancel."""
    c = np.ldexp(np.float32(1), np.arange(-149, 128))[None]
    c = np.concatenate([c, -c, np.nextafter(c, np.float32(0)), np.nextafter(c, np.float32(np.inf))])
    zeros = np.zeros((2, c.shape[1], 9), np.float16)
    found = multiply_add(zeros[0, : len(c)], zeros[1], c, rule)
    assert np.array_equal(found.view(np.uint32), c.view(np.uint32))


@pytest.mark.parametrize("wrong", [Rule(8, 25), Rule(16, 24), Rule(8, 23), Rule(4, 24), Rule(16, 26)])
def test_every_number_of_a_rule_matters(wrong):
    g = np.random.default_rng(0)
    a, b, c = halves("normal", g, 16, 64), halves("normal", g, 64, 64), sums("normal", g, (16, 64))
    other = multiply_add(a, b, c, wrong)
    for rule in RULES.values():
        assert not np.array_equal(multiply_add(a, b, c, rule), other)


@RULE
@pytest.mark.parametrize("place", [0, 17])
def test_specials(place, rule):
    """One special pair among ordinary ones, in the first or a later block; every other element is as without it."""
    inf, nan = np.inf, np.nan
    cases = [
        (nan, 1, 0, NAN),
        (1, nan, 0, NAN),
        (nan, 0, 0, NAN),
        (1, 1, nan, NAN),
        (inf, 0, 0, NAN),
        (-0.0, inf, 0, NAN),
        (inf, 1, -inf, NAN),
        (inf, -1, inf, NAN),
        (inf, 1, 0, INFINITY),
        (-inf, -inf, 3, INFINITY),
        (inf, -1, 0, INFINITY | 1 << 31),
        (1, 1, -inf, INFINITY | 1 << 31),
        (inf, 1, inf, INFINITY),
    ]
    g = np.random.default_rng(place)
    for x, y, z, bits in cases:
        for dtype in (np.float16, np.float32):
            a, b = halves("normal", g, 3, 32), halves("normal", g, 5, 32)
            a, b = (np.sign(v).astype(dtype) for v in (a, b))  # exact in bf16, too
            c = g.standard_normal((3, 5)).astype(np.float32)
            plain = multiply_add(a, b, c, rule).view(np.uint32)
            a[1, place], b[2, place], c[1, 2] = x, y, z
            found = multiply_add(a, b, c, rule).view(np.uint32)
            assert found[1, 2] == bits
            others = np.ones((3, 5), bool)
            others[1], others[:, 2] = False, False
            assert np.array_equal(found[others], plain[others])


@RULE
def test_opposing_infinities_in_one_sum(rule):
    a, b = np.ones((2, 1, 32), np.float16)
    for first, second, bits in ((3, 5, NAN), (3, 30, NAN), (3, None, INFINITY)):
        a[:] = 1
        a[0, first] = np.inf
        if second:
            a[0, second] = -np.inf
        assert multiply_add(a, b, None, rule).view(np.uint32)[0, 0] == bits


def test_zero_is_positive_and_infinity_stays():
    zeros = np.full((1, 16), -0.0, np.float16)
    assert multiply_add(zeros, -zeros, np.full((1, 1), -0.0, np.float32), RULES["hopper"]).view(np.uint32)[0, 0] == 0
    most = np.full((1, 32), 2.0**127, np.float32)  # in bf16, sums may leave the range of float32
    assert multiply_add(most, -most, None, RULES["hopper"])[0, 0] == -np.inf


def test_what_is_not_covered_is_said():
    ones = np.ones((1, 16), np.float32)
    with pytest.raises(ValueError, match="bf16"):
        multiply_add(ones * np.float32(1 / 3), ones, None, RULES["hopper"])
    with pytest.raises(TypeError, match="float64"):
        multiply_add(ones.astype(float), ones.astype(float), None, RULES["hopper"])
    with pytest.raises(ValueError, match="differ"):
        multiply_add(ones, ones[:, :8], None, RULES["hopper"])
    with pytest.raises(ValueError, match="sm_75"):
        rule_of(75)


def test_rule_of():
    assert {rule_of(a) for a in (80, 86, 87, 89)} == {Rule(8, 24)}
    assert {rule_of(a) for a in (90, 100, 120)} == {Rule(16, 25)}
