"""cp.async: copies from global to shared memory, waited for by groups."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import InFlightError, MemoryFault, PoisonError, RaceError, UnknownInstruction
from ptx_text import HERE, SCHEDULES, Fresh, Shape, always, execute, fails, kernel

LANES = np.arange(32, dtype=np.uint32)
SHARED = ".shared .align 16 .b8 s[2048];"
STORE = "    st.global.u32 [%mine], %r1;\n"
BEGIN = """
    shl.b32 %r20, %tid, 4;
    mov.u32 %r21, s;
    add.u32 %r20, %r20, %r21;
    mul.wide.u32 %d1, %tid, 16;
    add.s64 %d1, %a, %d1;
"""
COPY = "    cp.async.cg.shared.global [%r20], [%d1], 16;\n"
A = np.arange(256, dtype=np.uint32).reshape(64, 4) * 3
OUT = Fresh((32,))


def text(body: str) -> str:
    return kernel(BEGIN + body + STORE, shared=SHARED, out="u64", a="u64")


def shown(body: str, expected, block: int = 32) -> None:
    always(text(body), [Fresh((block,)), A], expected, Shape(block=block))


def faulty(kind, body: str, says: str = "", block: int = 32) -> None:
    fails(kind, text(body), [Fresh((block,)), A], Shape(block=block), says)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_sizes(size: int) -> None:
    copy = f"    cp.async.ca.shared.global [%r20], [%d1], {size}, {size};\n"
    shown(copy + f"    cp.async.wait_all;\n    ld.shared.u32 %r1, [%r20+{size - 4}];\n", A[:32, size // 4 - 1])
    beyond = f"    cp.async.ca.shared.global [%r20], [%d1], {size};\n    cp.async.wait_all;\n"
    faulty(
        PoisonError, beyond + f"    ld.shared.u32 %r1, [%r20+{size % 16}];\n" * (size < 16) + "    mov.u32 %r1, %r9;\n"
    )


GROUPS = """
    cp.async.ca.shared.global [%r20], [%d1], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r20+4], [%d1+4], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r20+8], [%d1+8], 4;
    cp.async.commit_group;
"""


def test_groups() -> None:
    sums = GROUPS
    for i in range(3):
        sums += f"    cp.async.wait_group {2 - i};\n    ld.shared.u32 %r{2 + i}, [%r20+{4 * i}];\n"
    shown(sums + "    add.u32 %r1, %r2, %r3;\n    add.u32 %r1, %r1, %r4;\n", A[:32, :3].sum(1))
    for left in range(3):
        read = f"    cp.async.wait_group {left};\n    ld.shared.u32 %r1, [%r20+{4 * (3 - left)}]; {HERE}\n"
        if left:
            faulty(InFlightError, GROUPS + read)


def test_what_is_not_committed_is_not_waited_for() -> None:
    body = COPY + f"    cp.async.wait_group 0;\n    ld.shared.u32 %r1, [%r20]; {HERE}\n    cp.async.wait_all;\n"
    faulty(InFlightError, body)


def test_a_read_before_the_wait_is_found_by_every_schedule() -> None:
    """Where the copy has arrived already, nothing but the rules says that it may not be read."""
    body = (
        COPY + f"    cp.async.commit_group;\n    SPIN\n    ld.shared.u32 %r1, [%r20]; {HERE}\n    cp.async.wait_all;\n"
    )
    spin = "mov.u32 %r2, 0;\nAGAIN:\n add.u32 %r2, %r2, 1;\n setp.lt.u32 %p1, %r2, 200;\n @%p1 bra AGAIN;\n"
    faulty(InFlightError, body.replace("SPIN", spin))


def test_another_warp_needs_a_barrier() -> None:
    body = (
        COPY
        + "    cp.async.wait_all;\n    BARRIER\n    xor.b32 %r22, %r20, 512;\n"
        + f"    ld.shared.u32 %r1, [%r22]; {HERE}\n"
    )
    a = A[:, 0][np.arange(64) ^ 32]
    shown(body.replace("BARRIER", "bar.sync 0;"), a, 64)
    swapped = body.replace("    cp.async.wait_all;\n    BARRIER\n", "    bar.sync 0;\n    cp.async.wait_all;\n")
    for wrong in (body.replace("BARRIER", ""), swapped):
        for seed, style in SCHEDULES:
            with pytest.raises((InFlightError, RaceError, PoisonError)):
                execute(text(wrong), [Fresh((64,)), A], Shape(block=64), seed, style)


def test_what_is_under_way_may_not_be_overwritten() -> None:
    store = f"    st.shared.u32 [%r20+12], 5; {HERE}\n    cp.async.wait_all;\n    mov.u32 %r1, 1;\n"
    faulty(InFlightError, COPY + store)
    again = f"    cp.async.cg.shared.global [%r20], [%d1], 16; {HERE}\n    cp.async.wait_all;\n    mov.u32 %r1, 1;\n"
    faulty(InFlightError, COPY + again)


def test_what_others_still_read_may_not_be_overwritten() -> None:
    body = """
    st.shared.u32 [%r20], %tid;
    bar.sync 0;
    xor.b32 %r22, %r20, 512;
    ld.shared.u32 %r1, [%r22]; // here
    BARRIER
    cp.async.ca.shared.global [%r20], [%d1], 4; // here
    cp.async.wait_all;
"""
    shown(body.replace("BARRIER", "bar.sync 0;"), np.arange(64) ^ 32, 64)
    faulty(RaceError, body.replace("BARRIER", ""), block=64)


def test_the_end_of_a_warp_while_copies_are_under_way() -> None:
    faulty(InFlightError, COPY + "    mov.u32 %r1, 1;\n", says="the warp ends while its cp.async")
    faulty(InFlightError, COPY + "    cp.async.commit_group;\n    cp.async.wait_group 1;\n    mov.u32 %r1, 1;\n")


def test_addresses_and_sources() -> None:
    wait = "    cp.async.wait_all;\n    mov.u32 %r1, 1;\n"
    faulty(MemoryFault, f"    cp.async.cg.shared.global [%r20+8], [%d1], 16; {HERE}\n" + wait, says="not aligned")
    faulty(MemoryFault, f"    cp.async.cg.shared.global [%r20], [%d1+4], 16; {HERE}\n" + wait, says="not aligned")
    faulty(MemoryFault, f"    cp.async.cg.shared.global [%r20+1552], [%d1], 16; {HERE}\n" + wait)
    faulty(MemoryFault, f"    cp.async.cg.shared.global [%r20], [%d1+528], 16; {HERE}\n" + wait)
    faulty(UnknownInstruction, f"    cp.async.cg.shared.global [%r20], [%d1], 16, 5; {HERE}\n" + wait, says="zeros")
    fails(PoisonError, text(COPY.rstrip() + f" {HERE}\n" + wait), [OUT, Fresh((64, 4))], says="was not written")


def test_lanes_copy_for_themselves() -> None:
    """Half of the lanes copy and wait; the others write their own values."""
    body = """
    setp.lt.u32 %p1, %lane, 16;
    @%p1 cp.async.ca.shared.global [%r20], [%d1], 8;
    @%p1 cp.async.commit_group;
    @!%p1 st.shared.u32 [%r20+4], 7;
    @%p1 cp.async.wait_group 0;
    ld.shared.u32 %r1, [%r20+4];
"""
    shown(body, np.where(LANES < 16, A[:32, 1], 7))
