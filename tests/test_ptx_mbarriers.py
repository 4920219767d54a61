"""mbarriers: phases, counts, states; what they order, and their use against the rules."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import BarrierError, Deadlock, InFlightError, MachineError, MemoryFault, PoisonError, RaceError
from ptx_text import HERE, ONE_WARP, SCHEDULES, Fresh, Shape, always, execute, fails, kernel

SHARED = ".shared .align 128 .b8 s[1024];\n.shared .align 8 .b8 bar[64];"
STORE = "    st.global.u32 [%mine], %r1;\n"
TWO = Shape(block=64)


def wait(where: str = "bar", parity: str | int = 0, mark: str = "") -> str:
    return f"""
    {{ .reg .pred %done;
    AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %done, [{where}], {parity}; {mark}
    @!%done bra AGAIN; }}
"""


def init(count: int | str, where: str = "bar") -> str:
    return f"""
    setp.eq.u32 %p1, %tid, 0;
    @%p1 mbarrier.init.shared::cta.b64 [{where}], {count};
    bar.sync 0;
    mov.u32 %r1, 0;
"""


def arrive(where: str = "bar", guard: str = "") -> str:
    return f"    {guard} mbarrier.arrive.shared::cta.b64 _, [{where}]; {HERE}\n"


def shown(text: str, expected, shape: Shape = TWO) -> None:
    given = [Fresh((shape.grid * shape.block,))]
    always(kernel(text + STORE, shared=SHARED, out="u64"), given, expected, shape)


def faulty(kind, text: str, shape: Shape = TWO, says: str = "") -> None:
    fails(kind, kernel(text, shared=SHARED, out="u64"), [Fresh((shape.grid * shape.block,))], shape, says)


EXCHANGE = """
    shl.b32 %r20, %tid, 2; mov.u32 %r21, s; add.u32 %r20, %r20, %r21;
    xor.b32 %r22, %r20, 128;
    st.shared.u32 [%r20], %tid; // here
    ARRIVE
    WAIT
    ld.shared.u32 %r1, [%r22]; // here
"""


def exchange(arrival: str, waiting: str) -> str:
    return EXCHANGE.replace("ARRIVE", arrival).replace("WAIT", waiting)


def test_it_orders_what_was_written_before_the_arrival() -> None:
    shown(init(64) + exchange(arrive(), wait()), np.arange(64) ^ 32)
    faulty(RaceError, init(64) + exchange(arrive(), ""))
    faulty(RaceError, init(64) + exchange(arrive().replace("arrive", "arrive.relaxed.cta"), wait()))
    faulty(RaceError, init(64) + exchange(arrive(), wait().replace("parity", "parity.relaxed.cta")))
    late = exchange("", "").rsplit("    ld.", 1)
    for seed, style in SCHEDULES:
        with pytest.raises((RaceError, MachineError)):
            text = init(64) + late[0] + "    ld." + late[1] + arrive() + wait()
            execute(kernel(text, shared=SHARED, out="u64"), [Fresh((64,))], TWO, seed, style)


def test_one_lane_for_all() -> None:
    elected = "    setp.eq.u32 %p2, %lane, 0;\n" + arrive(guard="@%p2")
    shown(init(2) + exchange("bar.warp.sync -1;\n" + elected, wait()), np.arange(64) ^ 32)


def test_many_phases() -> None:
    """Two warps hand a place to each other ten times; the parity changes each time."""
    text = (
        init(32)
        + init(32, "bar+8")
        + """
    mov.u32 %r2, 0;
    setp.ge.u32 %p5, %tid, 32;
    shl.b32 %r20, %lane, 2; mov.u32 %r21, s; add.u32 %r20, %r20, %r21;
    @%p5 bra CONSUMER;
PRODUCER:
    setp.eq.u32 %p2, %r2, 0;
    and.b32 %r3, %r2, 1; xor.b32 %r3, %r3, 1;
    """
        + wait("bar+8", "%r3")
        + """
    mad.lo.u32 %r4, %r2, 100, %lane;
    st.shared.u32 [%r20], %r4; // here
    mbarrier.arrive.shared::cta.b64 _, [bar];
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p3, %r2, 10;
    @%p3 bra PRODUCER;
    bra DONE;
CONSUMER:
    and.b32 %r3, %r2, 1;
    """
        + wait("bar", "%r3")
        + """
    ld.shared.u32 %r4, [%r20]; // here
    add.u32 %r1, %r1, %r4;
    mbarrier.arrive.shared::cta.b64 _, [bar+8];
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p3, %r2, 10;
    @%p3 bra CONSUMER;
DONE:
"""
    )
    expected = np.where(np.arange(64) < 32, 0, 4500 + 10 * (np.arange(64) % 32))
    shown(text, expected)
    wrong = text.replace("xor.b32 %r3, %r3, 1;", "")
    faulty(
        Deadlock, wrong.replace(HERE, "").replace("AGAIN: mbarrier", "AGAIN: mbarrier"), says="waits at the mbarrier"
    )
    deaf = text.replace(wait("bar", "%r3"), "")
    for seed, style in SCHEDULES:
        with pytest.raises((RaceError, BarrierError, PoisonError)):
            execute(kernel(deaf + STORE, shared=SHARED, out="u64"), [Fresh((64,))], TWO, seed, style)


def test_states() -> None:
    text = init(64) + exchange(
        "mbarrier.arrive.shared::cta.b64 %d5, [bar];",
        "AGAIN: mbarrier.try_wait.shared::cta.b64 %p2, [bar], %d5;\n    @!%p2 bra AGAIN;\n",
    )
    shown(text, np.arange(64) ^ 32)
    shown(text.replace("try_wait", "test_wait"), np.arange(64) ^ 32)
    faulty(
        BarrierError, text.replace("[bar], %d5;", f"[bar], 5; {HERE}").replace("%tid; // here", "%tid;"), says="phase 5"
    )


def test_generic_addresses() -> None:
    place = "    mov.u64 %d1, bar; cvta.shared.u64 %d1, %d1;\n"
    text = place + init(64) + exchange(arrive(), wait())
    text = text.replace(".shared::cta.b64", ".b64").replace("[bar]", "[%d1]")
    shown(text, np.arange(64) ^ 32)


def test_a_test_that_does_not_wait() -> None:
    """The warp polls, and does what ends the phase only after it has seen that the phase has not ended."""
    text = (
        init(1)
        + """
    @!%p1 bra OTHERS;
    mbarrier.test_wait.parity.shared::cta.b64 %p2, [bar], 0;
    @!%p2 mbarrier.arrive.shared::cta.b64 _, [bar];
    @!%p2 add.u32 %r1, %r1, 3;
OTHERS:
"""
        + wait()
    )
    shown(text, np.where(np.arange(64) == 0, 3, 0))
    shown(text.replace("test_wait", "try_wait"), np.where(np.arange(64) == 0, 3, 0))


def test_lanes_that_wait_for_different_barriers() -> None:
    text = (
        init(1)
        + init(1, "bar+8")
        + """
    and.b32 %r2, %lane, 1; shl.b32 %r3, %r2, 3; mov.u32 %r4, bar; add.u32 %r4, %r4, %r3;
    setp.ge.u32 %p3, %tid, 32;
    @%p3 bra WAITS;
    setp.eq.u32 %p4, %lane, 0;
    @%p4 mbarrier.arrive.shared::cta.b64 _, [bar+8];
    @%p4 mbarrier.arrive.shared::cta.b64 _, [bar];
    bra DONE;
WAITS:
"""
        + wait("%r4")
        + "    add.u32 %r1, %r2, 1;\nDONE:\n"
    )
    shown(text, np.where(np.arange(64) < 32, 0, np.arange(64) % 2 + 1))


def test_the_phase_before_the_first_has_ended() -> None:
    shown(init(1) + wait(parity=1), np.zeros(64))


# Against the rules


def test_counts() -> None:
    first = "    setp.lt.u32 %p2, %tid, 3;\n"
    faulty(BarrierError, init(64) + f"    mbarrier.arrive.shared::cta.b64 _, [bar], 40; {HERE}\n", says="more arrivals")
    faulty(Deadlock, init(4) + first + arrive(guard="@%p2").replace(HERE, "") + wait(mark=HERE), says="1 arrivals")
    for count in (0, 1 << 20):
        faulty(BarrierError, f"    mbarrier.init.shared::cta.b64 [bar], {count}; {HERE}\n", ONE_WARP, says="counts")


def test_a_phase_that_never_ends_says_who_waits_where() -> None:
    text = init(64) + "    setp.lt.u32 %p2, %tid, 32;\n" + arrive(guard="@%p2").replace(HERE, "") + wait(mark=HERE)
    says = r"(?s)waits at the mbarrier at 0x\w+ \(phase 0, 32 arrivals and 0 bytes missing\) for parity 0: main block 0"
    faulty(Deadlock, text, says=says)


def test_bytes_that_never_come() -> None:
    one = "    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 256;\n"
    faulty(Deadlock, init(1) + one + wait(mark=HERE), says="0 arrivals and 256 bytes missing")
    more = "    @%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 16;\n"
    last = "    @%p1 mbarrier.arrive.shared::cta.b64 _, [bar];\n"
    faulty(Deadlock, init(1) + more + last + wait(mark=HERE), says="16 bytes missing")


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (init(1) + f"    @%p1 mbarrier.init.shared::cta.b64 [bar], 2; {HERE}\n", BarrierError, "already"),
        (f"    mbarrier.arrive.shared::cta.b64 _, [bar]; {HERE}\n", BarrierError, "there is no mbarrier"),
        (f"    mbarrier.try_wait.parity.shared::cta.b64 %p1, [bar], 0; {HERE}\n", BarrierError, "there is no mbarrier"),
        (init(1) + f"    @%p1 mbarrier.arrive.shared::cta.b64 _, [bar+8]; {HERE}\n", BarrierError, "no mbarrier"),
        (f"    mbarrier.inval.shared::cta.b64 [bar]; {HERE}\n", BarrierError, "there is no mbarrier"),
        (f"    mbarrier.init.shared::cta.b64 [bar+4], 2; {HERE}\n", MemoryFault, "not aligned"),
        (f"    mbarrier.init.shared::cta.b64 [bar+64], 2; {HERE}\n", MemoryFault, "not in"),
        (init(1) + f"    ld.shared.u32 %r1, [bar]; {HERE}\n", InFlightError, "part of an mbarrier"),
        (init(1) + f"    @%p1 st.shared.u64 [bar], 0; {HERE}\n", InFlightError, "part of an mbarrier"),
        (init(1) + f"    @%p1 mbarrier.inval.shared::cta.b64 [bar];\n    @%p1 ld.shared.u32 %r2, [bar];\n"
         f"    @%p1 st.global.u32 [%out], %r2; {HERE}\n", MachineError, "undefined"),
        (init(1) + "    @%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 16;\n"
         f"    @%p1 mbarrier.inval.shared::cta.b64 [bar]; {HERE}\n", BarrierError, "invalidated while"),
        (init(1) + f"    @%p1 mbarrier.expect_tx.shared::cta.b64 [bar], 1048576; {HERE}\n", BarrierError, "bytes"),
    ],
)  # fmt: skip
def test_barriers_against_their_rules(text: str, kind, says: str) -> None:
    whole = kernel(text, shared=SHARED, out="u64")
    for seed, style in SCHEDULES:
        with pytest.raises(kind, match=says) as caught:
            execute(whole, [Fresh((64,))], ONE_WARP, seed, style)
        number = next(i for i, line in enumerate(whole.splitlines(), 1) if HERE in line)
        assert f"line {number}:" in str(caught.value)


def test_an_init_that_nothing_orders_is_found_by_every_schedule() -> None:
    text = init(64).replace("bar.sync 0;", "BARRIER") + arrive()
    shown(text.replace("BARRIER", "bar.sync 0;"), np.zeros(64))
    whole = kernel(text.replace("BARRIER", ""), shared=SHARED, out="u64")
    for seed, style in SCHEDULES:
        with pytest.raises((RaceError, BarrierError)):
            execute(whole, [Fresh((64,))], TWO, seed, style)


# In a cluster

PAIR = Shape(grid=2, block=32, cluster=(2, 1, 1))
SYNC = "    barrier.cluster.arrive.release.aligned;\n    barrier.cluster.wait.acquire.aligned;\n"
REMOTE = """
    mov.u32 %r2, %cluster_ctarank; xor.b32 %r2, %r2, 1;
    mov.u32 %r3, bar; mapa.shared::cluster.u32 %r3, %r3, %r2;
    mov.u32 %r4, s; shl.b32 %r5, %tid, 2; add.u32 %r4, %r4, %r5; mapa.shared::cluster.u32 %r5, %r4, %r2;
    FIRST
    add.u32 %r6, %tid, 7;
    mad.lo.u32 %r6, %r2, 100, %r6;
    st.shared::cluster.u32 [%r5], %r6; // here
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3]; // here
    WAIT
    ld.shared.u32 %r1, [%r4]; // here
    LAST
"""


def test_arrivals_from_another_block() -> None:
    text = init(32) + REMOTE.replace("WAIT", wait().replace("parity", "parity.acquire.cluster"))
    expected = np.arange(64) % 32 + 7 + 100 * np.repeat([0, 1], 32)
    shown(text.replace("FIRST", SYNC).replace("LAST", SYNC), expected, PAIR)
    unordered = kernel(text.replace("FIRST", "").replace("LAST", SYNC), shared=SHARED, out="u64")
    for seed, style in SCHEDULES:
        with pytest.raises((RaceError, BarrierError)):
            execute(unordered, [Fresh((64,))], PAIR, seed, style)
    faulty(RaceError, (init(32) + REMOTE).replace("FIRST", SYNC).replace("LAST", SYNC).replace("WAIT", ""), PAIR)


def test_an_arrival_at_a_block_that_has_ended() -> None:
    text = (
        init(1)
        + """
    mov.u32 %r2, %cluster_ctarank; setp.eq.u32 %p2, %r2, 1;
    SYNC
    @%p2 ret;
    mov.u32 %r3, bar; mapa.shared::cluster.u32 %r3, %r3, 1;
    @%p1 mbarrier.arrive.shared::cluster.b64 _, [%r3]; // here
""".replace("SYNC", SYNC)
    )
    seen = 0
    for seed, style in SCHEDULES:
        try:
            execute(kernel(text, shared=SHARED, out="u64"), [Fresh((64,))], PAIR, seed, style)
        except BarrierError as problem:
            seen += "has ended" in str(problem)
        except RaceError as problem:  # it ends before the arrival, or behind one that it does not know of
            assert "the end of block 1" in str(problem)
    assert seen >= 3
