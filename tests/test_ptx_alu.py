"""Comparisons, selections and moves of PTX, and what every instruction keeps to."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from ptx.alu import operation, operations
from ptx.masks import FULL, to_bools, to_mask
from ptx_numbers import DTYPES, FORMATS, decode, float_edges, integer_edges, run, signed

COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMPILED = """
abs.f64 add.f32 add.f64 add.rn.f32 add.rn.f64 add.s16x2 add.s32 add.s64 and.b16 and.b32 and.b64 and.pred bfe.u32 bfi.b32
bfind.shiftamt.u32 brev.b32 cvt.f32.bf16 cvt.f32.f16 cvt.f64.f16 cvt.f64.f32 cvt.rn.bf16.f32 cvt.rn.f16.f32
cvt.rn.f32.f64 cvt.rn.f64.s64 cvt.s32.s8 cvt.s64.s16 cvt.s64.s32 cvt.u16.u32 cvt.u16.u64 cvt.u32.u16 cvt.u32.u64
cvt.u64.u32 div.rn.f64 div.s32 div.s64 div.u32 fma.rn.f32 fma.rn.f64 lop3.b32 mad.lo.s32 mad.lo.s64 mad.wide.s32
mad.wide.u32 max.f32 max.f64 max.s32 min.f32 min.f64 min.s32 min.s64 min.u32 mov.b16 mov.b32 mov.b64 mov.f32 mov.f64
mov.pred mov.u16 mov.u32 mov.u64 mul.f64 mul.lo.s32 mul.lo.s64 mul.rn.f32 mul.rn.f64 mul.wide.s32 mul.wide.u32 neg.f64
neg.s32 neg.s64 not.b32 not.b64 not.pred or.b16 or.b32 or.b64 or.pred popc.b32 prmt.b32 rcp.rn.f64 rem.s32 rem.s64
rem.u32 selp.b16 selp.b32 selp.b64 selp.f32 selp.f64 selp.u16 selp.u32 setp.eq.b32 setp.eq.b64 setp.eq.f32 setp.eq.f64
setp.eq.s16 setp.eq.s32 setp.eq.s64 setp.ge.f32 setp.ge.f64 setp.ge.s32 setp.ge.s64 setp.ge.u32 setp.geu.f32 setp.gt.f64
setp.gt.s32 setp.gt.s64 setp.gt.u32 setp.le.f32 setp.le.f64 setp.le.s32 setp.le.s64 setp.leu.f64 setp.lt.f64 setp.lt.s32
setp.lt.s64 setp.lt.u32 setp.lt.u64 setp.ltu.f32 setp.ltu.f64 setp.ne.b16 setp.ne.b32 setp.ne.b64 setp.ne.f64
setp.ne.s16 setp.ne.s32 setp.ne.s64 setp.ne.u32 setp.neu.f64 setp.num.f64 shl.b16 shl.b32 shl.b64 shr.s16 shr.s32
shr.s64 shr.u16 shr.u32 shr.u64 sqrt.rn.f32 sqrt.rn.f64 sub.f32 sub.f64 sub.rn.f32 sub.rn.f64 sub.s32 sub.s64 xor.b32
"""


def _columns(edges: list[int]) -> tuple[list[int], list[int]]:
    rows = list(product(edges, edges))
    return [a for a, _ in rows], [b for _, b in rows]


@pytest.mark.parametrize("opcode", COMPILED.split())
def test_what_compilers_emit_is_known(opcode: str):
    assert operation(opcode) is not None


@pytest.mark.parametrize("opcode", ["ex2.approx.f32", "div.full.f32", "add.b32", "add.rn.s32", "setp.lt.b32", "ld.b32"])
def test_what_is_not_known(opcode: str):
    assert operation(opcode) is None


@pytest.mark.parametrize("width", [16, 32, 64])
def test_comparisons_of_integers(width: int):
    a, b = _columns(integer_edges(width, np.random.default_rng(0)))
    for letter in "usb":
        view = (lambda x: signed(x, width)) if letter == "s" else (lambda x: x)
        for name, function in COMPARISONS.items():
            if letter == "b" and name not in ("eq", "ne"):
                continue
            wanted = [function(view(x), view(y)) for x, y in zip(a, b, strict=True)]
            assert run(f"setp.{name}.{letter}{width}", a, b) == wanted
    for name, same in UNSIGNED.items():
        assert run(f"setp.{name}.u{width}", a, b) == run(f"setp.{same}.u{width}", a, b)


@pytest.mark.parametrize("name", FORMATS)
def test_comparisons_of_floats(name: str):
    of = FORMATS[name]
    a, b = _columns(float_edges(of, np.random.default_rng(1)))
    values = [(decode(x, of), decode(y, of)) for x, y in zip(a, b, strict=True)]
    numbers = [not math.isnan(x) and not math.isnan(y) for x, y in values]
    for key, function in COMPARISONS.items():
        ordered = [number and function(*pair) for number, pair in zip(numbers, values, strict=True)]
        assert run(f"setp.{key}.{name}", a, b) == ordered
        either = [result or not number for number, result in zip(numbers, ordered, strict=True)]
        assert run(f"setp.{key}u.{name}", a, b) == either
    assert run(f"setp.num.{name}", a, b) == numbers
    assert run(f"setp.nan.{name}", a, b) == [not number for number in numbers]


def test_comparisons_that_flush():
    a, b = _columns(float_edges(FORMATS["f32"], np.random.default_rng(2)))
    flushed = [[x if x & 0x7F800000 else x & 0x80000000 for x in column] for column in (a, b)]
    for name in ("lt", "eq", "geu", "ne"):
        assert run(f"setp.{name}.ftz.f32", a, b) == run(f"setp.{name}.f32", *flushed)


def test_comparisons_combined_with_a_predicate():
    a, b = _columns(integer_edges(32, np.random.default_rng(3)))
    p = [int(x) for x in np.random.default_rng(4).integers(0, 2, len(a))]
    for opcode in ("lt.{}.s32", "ne.{}.b32", "geu.{}.f32", "lt.{}.ftz.f32"):
        alone = run("setp." + opcode.replace("{}.", ""), a, b)
        rows = list(zip(alone, p, strict=True))
        assert run("setp." + opcode.format("and"), a, b, p) == [x & y for x, y in rows]
        assert run("setp." + opcode.format("or"), a, b, p) == [x | y for x, y in rows]
        assert run("setp." + opcode.format("xor"), a, b, p) == [x ^ y for x, y in rows]


def test_predicates():
    p, q = [0, 0, 1, 1] * 8, [0, 1, 0, 1] * 8
    rows = list(zip(p, q, strict=True))
    assert run("and.pred", p, q) == [x & y for x, y in rows]
    assert run("or.pred", p, q) == [x | y for x, y in rows]
    assert run("xor.pred", p, q) == [x ^ y for x, y in rows]
    assert run("not.pred", p) == [1 - x for x in p]
    assert run("mov.pred", p) == p


@pytest.mark.parametrize("width", [16, 32, 64])
def test_selections_and_moves(width: int):
    a, b = _columns(integer_edges(width, np.random.default_rng(5)))
    p = [int(x) for x in np.random.default_rng(6).integers(0, 2, len(a))]
    for letter in "busf"[: 3 if width == 16 else 4]:
        wanted = [x if bit else y for x, y, bit in zip(a, b, p, strict=True)]
        assert run(f"selp.{letter}{width}", a, b, p) == wanted
        assert run(f"mov.{letter}{width}", a) == a


def test_a_move_is_a_copy():
    a = np.arange(32, dtype=np.uint32)
    assert not np.shares_memory(operation("mov.b32").function(a), a)


def test_masks():
    for mask in (0, 1, FULL, 0x80000001, 0x12345678):
        bools = to_bools(mask)
        assert bools.tolist() == [bool(mask >> i & 1) for i in range(32)]
        assert to_mask(bools) == mask
    assert to_mask(np.bool_(True)) == FULL and to_mask(np.bool_(False)) == 0
    with pytest.raises(ValueError):
        to_bools(1)[0] = False


def _random(kind: str, rng: np.random.Generator) -> int | np.ndarray:
    return int(rng.integers(2**32)) if kind == "pred" else rng.integers(0, 2**64, 32, np.uint64).astype(DTYPES[kind])


def test_a_scalar_stands_for_all_lanes():
    """Every instruction gives the same for scalars, in any place or in all, as for arrays filled with them."""
    rng = np.random.default_rng(7)
    for opcode, (function, kinds, result) in operations().items():
        values = [_random(kind, rng) for kind in kinds]
        scalars = [x if isinstance(x, int) else x[3] for x in values]
        filled = [x if isinstance(x, int) else np.full(32, x) for x in scalars]
        if opcode == "lop3.b32":
            values[3] = filled[3] = scalars[3]  # the table is always a scalar
        with np.errstate(all="ignore"):
            _same(function(*scalars), function(*filled), result, opcode)
            for place in range(len(values)):
                mixed = [*values[:place], scalars[place], *values[place + 1 :]]
                arrays = [*values[:place], filled[place], *values[place + 1 :]]
                _same(function(*mixed), function(*arrays), result, opcode)


def _same(got, wanted, kind: str, opcode: str) -> None:
    if kind == "pred":
        assert type(got) is int and got == wanted, opcode
        return
    assert got.dtype == DTYPES[kind], opcode
    assert np.broadcast_to(got, 32).tolist() == np.broadcast_to(wanted, 32).tolist(), opcode
