"""Lanes that diverge and meet again, poison of registers, and instructions of a whole warp."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import Deadlock, Divergence, PoisonError
from ptx_text import HERE, ONE_WARP, Fresh, Shape, always, execute, fails, kernel

OUT = Fresh((32,))
LANES = np.arange(32, dtype=np.uint32)
STORE = "    st.global.u32 [%mine], %r1;\n"


def shown(text: str, expected, shape: Shape = ONE_WARP, **more) -> None:
    """The kernel's %r1 of every thread is as expected."""
    always(kernel(text + STORE, out="u64", **more), [Fresh((shape.grid * int(np.prod(shape.block)),))], expected, shape)


# Divergence


def test_nested_branches() -> None:
    text = """
    and.b32 %r2, %lane, 1;
    setp.eq.u32 %p1, %r2, 0;
    and.b32 %r3, %lane, 2;
    setp.eq.u32 %p2, %r3, 0;
    mov.u32 %r1, 0;
    @%p1 bra EVEN;
    @%p2 bra LOW;
    add.u32 %r1, %r1, 1;
    bra ODD;
LOW:
    add.u32 %r1, %r1, 2;
ODD:
    add.u32 %r1, %r1, 100;
    bra.uni JOIN;
EVEN:
    @!%p2 bra HIGH;
    add.u32 %r1, %r1, 4;
    bra JOIN;
HIGH:
    add.u32 %r1, %r1, 8;
JOIN:
    add.u32 %r1, %r1, 1000;
"""
    expected = np.select(
        [(LANES & 3) == 0, (LANES & 3) == 1, (LANES & 3) == 2], [1004, 1102, 1008], default=1101
    )  # lanes by their last two bits
    shown(text, expected)


def test_loops_of_different_lengths() -> None:
    text = """
    mov.u32 %r1, 0;
    mov.u32 %r2, 0;
AGAIN:
    setp.ge.u32 %p1, %r2, %lane;
    @%p1 bra DONE;
    add.u32 %r2, %r2, 1;
    add.u32 %r1, %r1, %r2;
    bra AGAIN;
DONE:
"""
    shown(text, LANES * (LANES + 1) // 2)


def test_lanes_meet_again_before_a_shuffle_behind_a_loop_and_an_outlined_branch() -> None:
    """The second branch lies behind the place where the lanes meet, so that lanes come to it by a jump back."""
    text = """
    mov.u32 %r2, 0;
AGAIN:
    setp.lt.u32 %p1, %lane, 11;
    @%p1 bra OUTLINED;
    add.u32 %r3, %lane, 100;
JOIN:
    shfl.sync.bfly.b32 %r3, %r3, 16, 31, -1;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, 3;
    @%p2 bra AGAIN;
    mov.u32 %r1, %r3;
    bra STORED;
OUTLINED:
    add.u32 %r3, %lane, 200;
    add.u32 %r4, %r3, 1;
    bra JOIN;
STORED:
"""
    own = np.where(LANES < 11, 200, 100) + LANES
    shown(text, own[LANES ^ 16])


def test_lanes_that_return_early() -> None:
    text = """
    setp.ge.u32 %p1, %lane, 20;
    mov.u32 %r1, 7;
    @%p1 bra KEEP;
    st.global.u32 [%mine], %lane;
    ret;
KEEP:
    activemask.b32 %r1;
    bar.sync 0;
"""
    shown(text, np.where(LANES >= 20, 0xFFF00000, LANES))


CALLED = """
.func (.param .b32 result) halved(.param .b32 a)
{
    .reg .b32 %r<4>;
    .reg .pred %p<2>;
    ld.param.u32 %r1, [a];
    mov.u32 %r2, 0;
    setp.gt.u32 %p1, %r1, 15;
    @%p1 bra LATE;
    st.param.b32 [result], %r2;
    ret;
LATE:
    shr.u32 %r2, %r1, 1;
    st.param.b32 [result], %r2;
    ret;
}
"""
CALL = """
    { .param .b32 a; .param .b32 b;
      st.param.b32 [a], %lane;
      call.uni (b), halved, (a);
      ld.param.b32 %r1, [b]; }
"""


def test_calls_inside_of_divergent_code() -> None:
    text = f"""
    mov.u32 %r1, 1;
    setp.lt.u32 %p1, %lane, 4;
    @%p1 bra OVER;
    {CALL}
OVER:
    shfl.sync.idx.b32 %r1, %r1, %lane, 31, -1;
"""
    shown(text, np.where(LANES < 4, 1, np.where(LANES > 15, LANES // 2, 0)), before=CALLED)


def test_lanes_that_return_at_different_times_meet_at_a_shuffle() -> None:
    """Some lanes wait at the shuffle while others are still in the function."""
    text = f"{CALL}    shfl.sync.up.b32 %r1, %r1, 1, 0, -1;\n"
    half = np.where(LANES > 15, LANES // 2, 0)
    shown(text, half[np.maximum(LANES.astype(int) - 1, 0)], before=CALLED)


def test_guarded_instructions() -> None:
    text = """
    setp.lt.u32 %p1, %lane, 10;
    mov.u32 %r1, 5;
    @%p1 mov.u32 %r1, 6;
    @!%p1 add.u32 %r1, %r1, %lane;
    @%p1 shfl.sync.idx.b32 %r1, %lane, 9, 31, 0x3ff;
"""
    shown(text, np.where(LANES < 10, 9, 5 + LANES))


def test_a_guarded_barrier_that_all_lanes_take() -> None:
    text = """
    setp.lt.u32 %p1, %tid, 64;
    @!%p1 bra OVER;
    @%p1 bar.sync 1, 64;
    mov.u32 %r1, 2;
OVER:
    @!%p1 mov.u32 %r1, 1;
"""
    shown(text, np.repeat([2, 2, 1], 32), Shape(block=96))


def test_missing_lanes_of_a_shuffle() -> None:
    text = f"""
    setp.lt.u32 %p1, %lane, 16;
    @%p1 bra OVER;
    shfl.sync.bfly.b32 %r1, %lane, 1, 31, -1; {HERE}
    bra JOIN;
OVER:
    shfl.sync.bfly.b32 %r1, %lane, 2, 31, -1; {HERE}
JOIN:
"""
    fails(Divergence, kernel(text + STORE, out="u64"), [OUT], says="the others do not come")
    guarded = f"    setp.lt.u32 %p1, %lane, 16;\n    @%p1 shfl.sync.idx.b32 %r1, %lane, 0, 31, -1; {HERE}\n"
    fails(Divergence, kernel(guarded, out="u64"), [OUT])


def test_a_shuffle_that_wants_lanes_that_have_ended_or_does_not_want_its_own() -> None:
    ended = "setp.lt.u32 %p1, %lane, 16;\n @%p1 ret;\n"
    shuffle = f"shfl.sync.bfly.b32 %r1, %lane, 1, 31, -1; {HERE}\n"
    fails(Divergence, kernel(ended + shuffle, out="u64"), [OUT], says="lanes 0-15, which have ended")
    fails(Divergence, kernel(shuffle.replace("-1", "0xffff"), out="u64"), [OUT], says="not among its members")


def test_half_a_warp_at_a_barrier() -> None:
    text = f"""
    setp.lt.u32 %p1, %lane, 16;
    @%p1 bra OTHER;
    bar.sync 0; {HERE}
    bra JOIN;
OTHER:
    bar.sync 0; {HERE}
JOIN:
"""
    fails(Divergence, kernel(text, out="u64"), [OUT])


def test_half_a_warp_at_a_barrier_while_the_others_go_round() -> None:
    text = """
    setp.lt.u32 %p1, %lane, 16;
ROUND:
    @%p1 bra ROUND;
    bar.sync 0;
"""
    for seed in range(4):
        with pytest.raises(Deadlock, match="no end after"):
            execute(kernel(text, out="u64"), [OUT], seed=seed, most=20_000)


def test_a_loop_without_an_end_names_its_place() -> None:
    text = f"ROUND:\n    bra ROUND; {HERE}\n"
    with pytest.raises(Deadlock, match=r"no end after [\s\S]*bra"):
        execute(kernel(text, out="u64"), [OUT], most=1000)


# Poison


def test_poison_may_be_computed_with_but_not_stored() -> None:
    text = """
    setp.eq.u32 %p1, %lane, 31;
    add.u32 %r3, %r2, 1;
    @%p1 mov.u32 %r3, 5;
    mul.lo.u32 %r4, %r3, %r3;
    selp.b32 %r1, %r4, %lane, %p1;
"""
    shown(text, np.where(LANES == 31, 25, LANES))
    bad = kernel(text + f"    st.global.u32 [%mine], %r4; {HERE}\n", out="u64")
    fails(PoisonError, bad, [OUT], says="undefined")


@pytest.mark.parametrize(
    "line",
    [
        "@%p9 bra OVER;",
        "@%p9 mov.u32 %r1, 3;",
        "@!%p9 ret;",
        "ld.global.u32 %r1, [%d9];",
        "st.global.u32 [%d9], %lane;",
        "st.global.v2.u32 [%out], {%lane, %r9};",
        "vote.sync.ballot.b32 %r1, %p9, -1;",
        "bar.red.or.pred %p1, 0, %p9;",
        "redux.sync.add.u32 %r1, %r9, -1;",
        "match.any.sync.b32 %r1, %r9, -1;",
        "shfl.sync.idx.b32 %r1, %lane, %r9, 31, -1;",
        "shfl.sync.idx.b32 %r1, %lane, 0, 31, %r9;",
        "atom.global.add.u32 %r1, [%out], %r9;",
        "red.global.add.u32 [%d9], 1;",
        "bar.sync %r9;",
        "mbarrier.init.shared.b64 [%r9], 1;",
        "mbarrier.init.shared.b64 [s], %r9;",
        "cp.async.ca.shared.global [%r9], [%out], 4;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r9];",
    ],
)
def test_what_poison_may_not_decide(line: str) -> None:
    text = f"setp.eq.u32 %p9, %r9, 0; add.s64 %d9, %d8, %out;\n    {line} {HERE}\nOVER:\n"
    shared = ".shared .align 16 .b8 s[64];"
    zeros = np.zeros(32, np.uint32)
    fails(PoisonError, kernel(text, shared=shared, out="u64"), [zeros], says="undefined")


def test_one_poisoned_lane_is_named() -> None:
    text = f"setp.ne.u32 %p1, %lane, 13;\n @%p1 mov.u32 %r1, 4;\n st.global.u32 [%mine], %r1; {HERE}\n"
    fails(PoisonError, kernel(text, out="u64"), [OUT])
    text = f"setp.ne.u32 %p1, %lane, 13;\n @%p1 setp.eq.u32 %p2, %lane, 4;\n @%p2 bra OVER; {HERE}\nOVER:\n"
    fails(PoisonError, kernel(text, out="u64"), [OUT], says="lane 13")
