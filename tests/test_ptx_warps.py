"""Instructions of a whole warp: shuffles, votes, reductions, matrices."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import Divergence, MemoryFault
from ptx_text import HERE, Fresh, Shape, always, fails, kernel

OUT = Fresh((32,))
LANES = np.arange(32, dtype=np.uint32)
STORE = "    st.global.u32 [%mine], %r1;\n"


def shown(text: str, expected, **more) -> None:
    always(kernel(text + STORE, out="u64", **more), [OUT], expected)


def shuffled(mode: str, b: int, width: int) -> tuple[list[int], list[bool]]:
    """__shfl_*_sync of CUDA's guide: segments of `width` lanes; where nothing is there, the own value stays."""
    sources, inside = [], []
    for lane in range(32):
        first = lane // width * width
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first + b % width}[mode]
        good = first <= source if mode == "up" else source < first + width
        sources.append(source if good else lane)
        inside.append(good)
    return sources, inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize(("b", "width"), [(0, 32), (1, 32), (5, 8), (16, 32), (3, 4), (9, 16), (31, 32), (1, 2)])
def test_shuffles_with_segments(mode: str, b: int, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    sources, inside = shuffled(mode, b, width)
    text = f"""
    add.u32 %r2, %lane, 100;
    shfl.sync.{mode}.b32 %r1|%p1, %r2, {b}, {clamp}, -1;
    @%p1 add.u32 %r1, %r1, 1000;
"""
    shown(text, np.array(sources) + 100 + 1000 * np.array(inside))


def test_shuffles_of_tiles_that_name_their_own_members() -> None:
    """Each group of eight lanes names itself, as a tile of cooperative groups does."""
    text = """
    and.b32 %r2, %lane, 24;
    mov.u32 %r3, 255;
    shl.b32 %r3, %r3, %r2;
    shfl.sync.idx.b32 %r1, %lane, 3, 0x1807, %r3;
    setp.gt.u32 %p1, %lane, 9;
    vote.sync.ballot.b32 %r4, %p1, %r3;
    redux.sync.max.u32 %r5, %lane, %r3;
    bar.warp.sync %r3;
    add.u32 %r1, %r1, %r5;
    xor.b32 %r1, %r1, %r4;
"""
    first = LANES // 8 * 8
    above = np.array([sum(1 << i for i in range(int(f), int(f) + 8) if i > 9) for f in first], np.uint32)
    shown(text, (first + 3 + first + 7).astype(np.uint32) ^ above)


def test_tiles_whose_lanes_come_at_different_times() -> None:
    text = """
    and.b32 %r2, %lane, 16;
    mov.u32 %r3, 0xffff;
    shl.b32 %r3, %r3, %r2;
    and.b32 %r4, %lane, 5;
    setp.eq.u32 %p1, %r4, 5;
    mov.u32 %r5, 1;
    @!%p1 bra OVER;
    add.u32 %r5, %r5, 1;
    add.u32 %r5, %r5, 1;
OVER:
    redux.sync.add.u32 %r1, %r5, %r3;
"""
    shown(text, np.full(32, 16 + 2 * 4))


def test_members_that_contradict_each_other() -> None:
    text = f"setp.lt.u32 %p1, %lane, 8;\n selp.b32 %r2, 0xff, -1, %p1;\n bar.warp.sync %r2; {HERE}\n"
    fails(Divergence, kernel(text, out="u64"), [OUT])


def test_votes() -> None:
    text = """
    setp.lt.u32 %p1, %lane, 7;
    vote.sync.ballot.b32 %r1, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1;
    vote.sync.all.pred %p3, !%p1, -1;
    vote.sync.uni.pred %p4, %p1, -1;
    @%p2 add.u32 %r1, %r1, 1000;
    @%p3 add.u32 %r1, %r1, 2000;
    @%p4 add.u32 %r1, %r1, 4000;
    setp.lt.u32 %p5, %lane, 32;
    vote.sync.all.pred %p6, %p5, -1;
    vote.sync.uni.pred %p7, !%p5, -1;
    @%p6 add.u32 %r1, %r1, 8000;
    @%p7 add.u32 %r1, %r1, 16000;
"""
    shown(text, np.full(32, 127 + 1000 + 8000 + 16000))


def test_reductions() -> None:
    for operation, kind, expected in (
        ("add", "u32", sum(range(-5, 27)) % 2**32),
        ("min", "s32", -5 % 2**32),
        ("min", "u32", 0),
        ("max", "s32", 26),
        ("max", "u32", 2**32 - 1),
        ("and", "b32", 0),
        ("or", "b32", 2**32 - 1),
        ("xor", "b32", int(np.bitwise_xor.reduce(np.arange(-5, 27, dtype=np.int32))) % 2**32),
    ):
        text = f"    sub.u32 %r2, %lane, 5;\n    redux.sync.{operation}.{kind} %r1, %r2, -1;\n"
        shown(text, np.full(32, expected, np.uint32))


def test_one_lane_is_elected() -> None:
    text = """
    mov.u32 %r1, 0;
    elect.sync %r2|%p1, -1;
    @%p1 add.u32 %r1, %r1, 1;
    elect.sync _|%p2, -1;
    @%p2 add.u32 %r1, %r1, 2;
    setp.eq.u32 %p3, %r2, %lane;
    @%p3 add.u32 %r1, %r1, 4;
    redux.sync.add.u32 %r3, %r1, -1;
    redux.sync.max.u32 %r1, %r1, -1;
    mad.lo.u32 %r1, %r3, 100, %r1;
"""
    shown(text, np.full(32, 707))


def test_matches() -> None:
    text = """
    and.b32 %r2, %lane, 3;
    match.any.sync.b32 %r1, %r2, -1;
    match.all.sync.b32 %r3|%p1, %r2, -1;
    match.all.sync.b32 %r4|%p2, 5, -1;
    @%p1 mov.u32 %r1, 0;
    @!%p2 mov.u32 %r1, 0;
    xor.b32 %r1, %r1, %r3;
    not.b32 %r4, %r4;
    xor.b32 %r1, %r1, %r4;
"""
    shown(text, np.array([0x11111111 << (lane & 3) for lane in range(32)], np.uint32))


# Matrices

SHARED = ".shared .align 16 .b8 s[2048];"
FILL = """
    mov.u32 %r10, s;
    mov.u32 %r11, 0;
FILLING:
    shl.b32 %r12, %r11, 5;
    add.u32 %r12, %r12, %lane;
    shl.b32 %r13, %r12, 1;
    add.u32 %r13, %r13, %r10;
    cvt.u16.u32 %h1, %r12;
    st.shared.u16 [%r13], %h1;
    add.u32 %r11, %r11, 1;
    setp.lt.u32 %p1, %r11, 8;
    @%p1 bra FILLING;
    bar.warp.sync -1;
    shl.b32 %r14, %lane, 4;
    add.u32 %r14, %r14, %r10;
"""


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, trans: str) -> None:
    """Element (row, column) of matrix i is the number 64 i + 8 row + column."""
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    text = FILL + f"    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r14];\n"
    for i in range(count):
        row, column = LANES // 4, LANES % 4 * 2
        if trans:
            low, high = 8 * column + row, 8 * (column + 1) + row
        else:
            low, high = 8 * row + column, 8 * row + column + 1
        shown(text + f"    mov.b32 %r1, %r{20 + i};\n", (low + 64 * i) | (high + 64 * i) << 16, shared=SHARED)


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix_is_the_inverse(count: int, trans: str) -> None:
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    text = (
        FILL
        + f"""
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r14];
    add.u32 %r15, %r14, 1024;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r15], {{{registers}}};
    bar.warp.sync -1;
    shl.b32 %r16, %lane, 2;
    add.u32 %r16, %r16, %r10;
    ld.shared.u32 %r1, [%r16+{1024 + 128 * (count - 1)}];
"""
    )
    first = 64 * (count - 1) + 2 * LANES
    shown(text, first | (first + 1) << 16, shared=SHARED)


def test_ldmatrix_at_wrong_addresses() -> None:
    load = f"    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r14+AT]; {HERE}\n"
    for at in (8, 2048 - 496, -16):
        text = kernel(FILL + load.replace("AT", str(at)), shared=SHARED, out="u64")
        fails(MemoryFault, text, [OUT])
    half = f"setp.lt.u32 %p1, %lane, 16;\n @%p1 {load.strip()}\n".replace("AT", "0")
    fails(Divergence, kernel(FILL + half, shared=SHARED, out="u64"), [OUT])


def test_mma_on_small_integers() -> None:
    """Fragments by the formulas of the manual, of random integers; the sum is exact."""
    random = np.random.default_rng(0)
    a, b = random.integers(-8, 9, (16, 16)), random.integers(-8, 9, (16, 8))
    c = random.integers(-100, 100, (16, 8)).astype(np.float32)
    a_of, b_of = np.zeros((32, 8), np.float16), np.zeros((32, 4), np.float16)
    c_of, d_of = np.zeros((32, 4), np.float32), np.zeros((32, 4), np.float32)
    d = (a @ b + c).astype(np.float32)
    for lane in range(32):
        group, thread = lane >> 2, lane & 3
        for i in range(8):
            row = group if i in (0, 1, 4, 5) else group + 8
            a_of[lane, i] = a[row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)]
        for i in range(4):
            b_of[lane, i] = b[thread * 2 + (i & 1) + (8 if i >= 2 else 0), group]
            row, column = group + 8 * (i >= 2), thread * 2 + (i & 1)
            c_of[lane, i], d_of[lane, i] = c[row, column], d[row, column]
    text = """
    mul.wide.u32 %d1, %lane, 16;
    add.s64 %d2, %a, %d1;
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d2];
    mul.wide.u32 %d3, %lane, 8;
    add.s64 %d3, %b, %d3;
    ld.global.v2.b32 {%r5, %r6}, [%d3];
    add.s64 %d4, %c, %d1;
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d4];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6},
        {%f1, %f2, %f3, %f4};
    add.s64 %d5, %result, %d1;
    st.global.v4.f32 [%d5], {%f1, %f2, %f3, %f4};
"""
    whole = kernel(text, result="u64", a="u64", b="u64", c="u64")
    always(whole, [Fresh((32, 4), np.float32), a_of, b_of, c_of], d_of, Shape())
