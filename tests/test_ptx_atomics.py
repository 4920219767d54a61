"""Atomics of the PTX machine: in any order, none lost; the last block that finishes."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import PoisonError
from ptx_text import Fresh, Shape, always, kernel, sometimes


@pytest.mark.parametrize(
    ("operation", "start", "expected"),
    [
        ("add.u32", 5, 5 + sum(range(64))),
        ("add.s32", 5, 5 + sum(range(64))),
        ("min.u32", 40, 0),
        ("min.s32", -7 % 2**32, -7 % 2**32),
        ("max.u32", 40, 63),
        ("max.s32", -7 % 2**32, 63),
        ("or.b32", 0, 63),
        ("and.b32", 0xFFFF, 0),
        ("xor.b32", 0xF00, 0xF00),
    ],
)
@pytest.mark.parametrize("space", ["global", "shared", ""])
def test_atomics_of_all_threads(operation: str, start: int, expected: int, space: str) -> None:
    dot = f".{space}" if space else ""
    where = {"global": "%out", "shared": "s", "": "%d1"}[space]
    text = f"""
    mov.u64 %d1, s; cvta.shared.u64 %d1, %d1;
    ld.global.u32 %r2, [%out];
    setp.eq.u32 %p1, %tid, 0;
    @%p1 st.shared.u32 [s], %r2;
    bar.sync 0;
    red{dot}.{operation} [{where}], %tid;
    bar.sync 0;
    @!%p1 ret;
    {"" if space == "global" else "ld.shared.u32 %r3, [s]; st.global.u32 [%out], %r3;"}
"""
    whole = kernel(text, shared=".shared .align 4 .b8 s[4];", out="u64")
    always(whole, [np.array([start], np.uint32)], [expected], Shape(block=64))


def test_each_thread_gets_its_own_ticket() -> None:
    text = """
    atom.global.add.u32 %r1, [%counter], 1;
    mul.wide.u32 %d1, %r1, 4;
    add.s64 %d1, %out, %d1;
    st.global.u32 [%d1], %r1;
"""
    counter = np.zeros(1, np.uint32)
    always(kernel(text, out="u64", counter="u64"), [Fresh((256,)), counter], np.arange(256), Shape(4, 64))


def test_compare_and_swap_and_floats() -> None:
    text = """
AGAIN:
    ld.volatile.global.u32 %r1, [%out];
    add.u32 %r2, %r1, 3;
    atom.global.cas.b32 %r3, [%out], %r1, %r2;
    setp.ne.u32 %p1, %r3, %r1;
    @%p1 bra AGAIN;
    mov.f32 %f1, 0f3F000000;
    atom.global.add.f32 %f2, [%out+4], %f1;
    atom.global.exch.b32 %r4, [%out+8], 9;
    atom.global.max.u64 %d1, [%out+16], 77;
"""
    start = np.array([0, 0, 1, 0, 76, 0], np.uint32)
    always(kernel(text, out="u64"), [start], [96, 0x41800000, 9, 0, 77, 0])


LAST = """
    st.global.u32 [%mine], %tid;
    membar.gl;
    bar.sync 0;
    setp.ne.u32 %p1, %tid, 0;
    mov.u32 %r5, %nctaid.x;
    @%p1 bra ASKED;
    sub.u32 %r6, %r5, 1;
    atom.global.inc.u32 %r1, [%counter], %r6;
    setp.eq.u32 %p2, %r1, LIMIT;
    selp.u32 %r2, 1, 0, %p2;
    st.shared.u32 [s], %r2;
ASKED:
    bar.sync 0;
    ld.shared.u32 %r2, [s];
    setp.eq.u32 %p3, %r2, 0;
    @%p3 ret;
    membar.gl;
    mov.u32 %r7, 0;
    mov.u32 %r8, 0;
SUM:
    mad.lo.u32 %r9, %r7, 64, %tid;
    mul.wide.u32 %d1, %r9, 4;
    add.s64 %d1, %out, %d1;
    ld.global.u32 %r10, [%d1];
    add.u32 %r8, %r8, %r10;
    add.u32 %r7, %r7, 1;
    setp.lt.u32 %p4, %r7, %r5;
    @%p4 bra SUM;
    mul.wide.u32 %d2, %tid, 4;
    add.s64 %d2, %total, %d2;
    st.global.u32 [%d2], %r8;
"""


def last_block(limit: str) -> tuple[str, list, Shape]:
    text = LAST.replace("LIMIT", limit)
    whole = kernel(text, shared=".shared .align 4 .b8 s[4];", total="u64", out="u64", counter="u64")
    return whole, [np.zeros(64, np.uint32), Fresh((320,)), np.zeros(1, np.uint32)], Shape(5, 64)


def test_the_last_block_finishes() -> None:
    text, arguments, shape = last_block("%r6")
    always(text, arguments, 5 * np.arange(64), shape)
    always(text, arguments, [0], shape, result=2)  # the counter is ready for the next launch


def test_a_counter_that_is_off_by_one() -> None:
    """The last but one block sums what is not there yet; where it happens to be there, nothing is wrong."""
    text, arguments, shape = last_block("3")
    assert sometimes(PoisonError, text, arguments, shape) >= 4
    text, arguments, shape = last_block("5")
    always(text, arguments, np.zeros(64), shape)  # nobody sums
