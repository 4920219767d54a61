"""Barriers of a block, and the races that they prevent."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import BarrierError, Deadlock, RaceError
from ptx_blocks import OWN, SHARED, faulty, out, shown
from ptx_text import HERE, Shape, execute, kernel

LANES = np.arange(32, dtype=np.uint32)
OTHER = "    xor.b32 %r22, %r20, 128;\n"  # the same lane of the other warp of a pair


# Races


def test_a_barrier_orders_and_a_missing_one_is_found_by_every_schedule() -> None:
    text = OWN + OTHER + f"    st.shared.u32 [%r20], %tid; {HERE}\nBARRIER\n    ld.shared.u32 %r1, [%r22]; {HERE}\n"
    shown(text.replace("BARRIER", "    bar.sync 0;"), np.arange(64) ^ 32)
    faulty(RaceError, text.replace("BARRIER", ""), says="nothing orders")
    faulty(RaceError, text.replace("BARRIER", "    membar.cta;"), says="nothing orders")
    faulty(RaceError, text.replace("BARRIER", "    bar.sync %warp, 32;"), says="nothing orders")


def test_a_write_behind_a_read() -> None:
    """The second round overwrites what the other warp reads in the first one."""
    text = (
        OWN
        + OTHER
        + """
    st.shared.u32 [%r20], %tid;
    bar.sync 0;
    ld.shared.u32 %r1, [%r22]; // here
    BARRIER
    add.u32 %r2, %tid, 100;
    st.shared.u32 [%r20], %r2; // here
    bar.sync 0;
    ld.shared.u32 %r3, [%r22];
    add.u32 %r1, %r1, %r3;
"""
    )
    shown(text.replace("BARRIER", "bar.sync 0;"), 2 * (np.arange(64) ^ 32) + 100)
    faulty(RaceError, text.replace("BARRIER", ""))


def test_two_writes() -> None:
    """Of different values they race; of equal ones they do not."""
    text = f"    bar.sync 0;\n    st.shared.u32 [s], VALUE; {HERE}\n    bar.sync 0;\n    ld.shared.u32 %r1, [s];\n"
    shown(text.replace("VALUE", "77"), np.full(64, 77))
    faulty(RaceError, text.replace("VALUE", "%warp"), says="behind the write by warp")


def test_atomics_do_not_race_with_each_other_but_with_ordinary_accesses() -> None:
    start = "    st.shared.u32 [s], 0;\n    bar.sync 0;\n"
    add = f"    atom.shared.add.u32 %r2, [s], 1; {HERE}\n"
    shown(start + add + "    bar.sync 0;\n    ld.shared.u32 %r1, [s];\n", np.full(64, 64))
    faulty(RaceError, start + add + f"    ld.shared.u32 %r1, [s]; {HERE}\n")
    faulty(RaceError, start + add + f"    st.shared.u32 [s], 500; {HERE}\n")
    apart = "    setp.lt.u32 %p1, %tid, 32;\n    @%p1 bra READS;\n" + add + "    ret;\nREADS:\n"
    faulty(RaceError, start + apart + f"    ld.shared.u32 %r1, [s]; {HERE}\n")


def test_a_flag_in_shared_memory_orders() -> None:
    text = """
    setp.eq.u32 %p1, %tid, 0;
    @%p1 st.shared.u32 [s], 0;
    bar.sync 0;
    setp.lt.u32 %p2, %tid, 32;
    @%p2 bra WAITS;
    st.shared.u32 [s+16], 5; // here
    setp.eq.u32 %p3, %tid, 32;
    @%p3 st.RELEASE.shared.u32 [s], 1; // here
    mov.u32 %r1, 0;
    bra DONE;
WAITS:
    ld.ACQUIRE.shared.u32 %r2, [s]; // here
    setp.eq.u32 %p4, %r2, 0;
    @%p4 bra WAITS;
    ld.shared.u32 %r1, [s+16]; // here
DONE:
"""
    good = text.replace("RELEASE", "release.cta").replace("ACQUIRE", "acquire.cta")
    shown(good, np.where(np.arange(64) < 32, 5, 0))
    faulty(RaceError, text.replace(".RELEASE", "").replace(".ACQUIRE", ""))


# Barriers of a block


def test_reductions_at_a_barrier() -> None:
    text = """
    setp.eq.u32 %p1, %tid, 40;
    bar.red.or.pred %p2, 0, %p1;
    bar.red.and.pred %p3, 1, !%p1;
    setp.lt.u32 %p4, %tid, 37;
    bar.red.popc.u32 %r1, 0, %p4;
    setp.lt.u32 %p5, %tid, 1000;
    bar.red.and.pred %p6, 0, %p5;
    @%p2 add.u32 %r1, %r1, 100;
    @%p3 add.u32 %r1, %r1, 1000;
    @%p6 add.u32 %r1, %r1, 10000;
"""
    shown(text, np.full(64, 10137))
    shown(text.replace("40;", "400;"), np.full(64, 11037))


def test_a_reduction_of_a_part_of_the_block() -> None:
    text = """
    shr.u32 %r2, %tid, 6;
    setp.lt.u32 %p1, %tid, 70;
    bar.red.popc.u32 %r1, %r2, 64, %p1;
    bar.red.popc.u32 %r3, %r2, 64, !%p1;
    mad.lo.u32 %r1, %r3, 100, %r1;
"""
    shown(text, np.repeat([64, 6 + 5800], 64), Shape(block=128))


def test_lanes_and_warps_that_have_ended_are_not_waited_for() -> None:
    text = (
        OWN
        + """
    setp.ge.u32 %p1, %tid, 40;
    st.shared.u32 [%r20], %tid;
    mov.u32 %r1, 1;
    @%p1 bra STORED;
    bar.sync 0;
    ld.shared.u32 %r1, [s+124];
    bar.sync 0;
STORED:
"""
    )
    shown(text.replace("STORED:", "STORED:"), np.where(np.arange(96) < 40, 31, 1), Shape(block=96))


def test_named_barriers_of_producers_and_consumers() -> None:
    """Warp 0 fills what warps 1 and 2 read, three times: bar.arrive at the one barrier, bar.sync at the other."""
    text = """
    mov.u32 %r2, 0;
    mov.u32 %r1, 0;
    mov.u32 %r21, s;
    shl.b32 %r20, %lane, 2;
    add.u32 %r20, %r20, %r21;
    setp.gt.u32 %p1, %warp, 0;
    @%p1 bra CONSUMER;
PRODUCER:
    EMPTY
    mad.lo.u32 %r3, %r2, 100, %lane;
    st.shared.u32 [%r20], %r3; // here
    bar.arrive 1, 96;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, 3;
    @%p2 bra PRODUCER;
    bar.sync 2, 96;
    bra DONE;
CONSUMER:
    bar.arrive 2, 96;
ROUND:
    FULL
    ld.shared.u32 %r3, [%r20]; // here
    add.u32 %r1, %r1, %r3;
    bar.arrive 2, 96;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, 3;
    @%p2 bra ROUND;
DONE:
"""
    good = text.replace("EMPTY", "bar.sync 2, 96;").replace("FULL", "bar.sync 1, 96;")
    lanes = np.tile(LANES, 3)
    shown(good, np.where(np.arange(96) < 32, 0, 300 + 3 * lanes), Shape(block=96))
    deaf = text.replace("EMPTY", "bar.sync 2, 96;").replace("FULL", "bar.arrive 1, 96;")
    with pytest.raises((RaceError, BarrierError)):
        execute(kernel(deaf, shared=SHARED, out="u64"), [out(Shape(block=96))], Shape(block=96))


@pytest.mark.parametrize(
    ("first", "second", "kind", "says"),
    [
        ("bar.sync 0;", "bar.sync 1;", Deadlock, "waits at barrier 0[^@]*waits at barrier 1"),
        ("bar.sync 0, 64;", "bar.sync 1, 64;", Deadlock, "waits at barrier"),
        ("bar.sync 0;", "bar.red.or.pred %p1, 0, %p2;", BarrierError, "of the same barrier"),
        ("bar.red.or.pred %p1, 0, %p2;", "bar.red.and.pred %p1, 0, %p2;", BarrierError, "of the same barrier"),
        ("bar.sync 0, 32;", "bar.sync 0, 32;", None, ""),
        ("bar.sync 2, 96;", "bar.sync 2, 96;", BarrierError, "96 threads, in a block of 64"),
        ("bar.sync 2, 40;", "bar.sync 2, 40;", BarrierError, "40 threads"),
        ("bar.sync 16;", "bar.sync 16;", BarrierError, "a block has 0 to 15"),
        ("bar.arrive 0, 64; bar.arrive 0, 64;", "bar.sync 5;", BarrierError, "arrives twice"),
        ("bar.arrive 3, 64;", "bar.sync 3, 64;", None, ""),
    ],
)
def test_barriers_that_do_not_suit_each_other(first: str, second: str, kind, says: str) -> None:
    text = f"""
    setp.eq.u32 %p2, %warp, 0;
    mov.u32 %r1, 0;
    @%p2 bra FIRST;
    {second} {HERE}
    bra DONE;
FIRST:
    {first} {HERE}
DONE:
"""
    if kind is None:
        shown(text, np.zeros(64))
    else:
        faulty(kind, text, says=says)


def test_counts_that_differ() -> None:
    text = f"setp.gt.u32 %p1, %warp, 1; @%p1 ret; add.u32 %r2, %warp, 2; shl.b32 %r2, %r2, 5; bar.sync 0, %r2; {HERE}"
    faulty(BarrierError, text, Shape(block=128), says="expects")


def test_a_warp_that_never_comes() -> None:
    text = f"""
    setp.eq.u32 %p1, %warp, 1;
    @%p1 bra AGAIN;
    bar.sync 3; {HERE}
    ret;
AGAIN:
    bar.sync 4; {HERE}
"""
    faulty(
        Deadlock, text, says=r"waits at barrier 3: main block 0 warp 0[\s\S]*waits at barrier 4: main block 0 warp 1"
    )
