"""Bulk tensor copies: boxes, edges, swizzles, multicast, bytes that a barrier counts; and what goes wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ptx.errors import BarrierError, Deadlock, InFlightError, MemoryFault, PoisonError, RaceError, UnknownInstruction
from ptx.tensor_map import TensorMap
from ptx_text import HERE, SCHEDULES, Fresh, Shape, address, always, execute, fails, kernel

SHARED = ".shared .align 1024 .b8 s[4096];\n.shared .align 8 .b8 bar[16];"
ROWS, COLUMNS = 20, 72  # of the tensor, float16
BOX = (32, 16)  # columns, rows
TENSOR = np.random.default_rng(0).integers(1, 60000, (ROWS, COLUMNS)).astype(np.uint16)
RESULT = Fresh((512,))
PAIR = Shape(grid=2, block=32, cluster=(2, 1, 1))
SYNC = "    barrier.cluster.arrive.release.aligned;\n    barrier.cluster.wait.acquire.aligned;\n"
INIT = """
    setp.eq.u32 %p1, %tid, 0;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    @%p1 mbarrier.init.shared::cta.b64 [bar+8], 1;
    fence.mbarrier_init.release.cluster;
    bar.sync 0;
    mov.b64 %d1, map; cvta.param.u64 %d2, %d1;
    mov.u32 %r2, XX; mov.u32 %r3, YY;
"""
EXPECT = "    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], BYTES;\n"
NAME = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
COPY = f"    @%p1 {NAME} [s], [%d2, {{%r2, %r3}}], [bar];\n"
MARKED = COPY.rstrip() + f" {HERE}\n"
WAIT = "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], 0;\n    @!%p2 bra AGAIN;\n"
DUMP = """
    mov.u32 %r10, 0;
    mad.lo.u32 %r15, %block, 2048, 0;
DUMP:
    mad.lo.u32 %r11, %r10, 128, 0; shl.b32 %r12, %tid, 2; add.u32 %r11, %r11, %r12;
    mov.u32 %r13, s; add.u32 %r13, %r13, %r11;
    ld.shared.u32 %r14, [%r13]; // here
    add.u32 %r16, %r15, %r11;
    cvt.u64.u32 %d3, %r16; add.s64 %d3, %out, %d3;
    st.global.u32 [%d3], %r14; // here
    add.u32 %r10, %r10, 1;
    setp.lt.u32 %p3, %r10, COUNT;
    @%p3 bra DUMP;
"""


def tensor_map(swizzle: int = 0, box: tuple[int, int] = BOX, **more) -> TensorMap:
    kept = {"address": address(2), "sizes": (COLUMNS, ROWS), "strides": (2 * COLUMNS,)} | more
    return TensorMap(
        element_bytes=2, box=box, element_strides=(1, 1), swizzle=swizzle, interleave=0,
        fill_nan=False, element_type="float16", **kept,
    )  # fmt: skip


def text(parts: str, x: int = 0, y: int = 0, size: int = 1024, count: int = 8) -> str:
    whole = parts.replace("BYTES", str(size)).replace("XX", str(x)).replace("YY", str(y)).replace("COUNT", str(count))
    return kernel(whole, shared=SHARED, **{"out": "u64", "map[128]": "align 64 .b8", "tensor": "u64"})


def given(one: TensorMap | bytes, tensor=TENSOR, result: Fresh = RESULT) -> list:
    return [result, one, tensor]


def box_at(x: int, y: int, box: tuple[int, int] = BOX) -> np.ndarray:
    """The box, from the tensor with wide margins of zeros."""
    margin = 300
    wide = np.pad(TENSOR, margin)
    return wide[margin + y : margin + y + box[1], margin + x : margin + x + box[0]]


GOOD = INIT + EXPECT + COPY + WAIT + DUMP


@pytest.mark.parametrize(
    ("x", "y"), [(0, 0), (8, 3), (40, 4), (48, 12), (71, 19), (-5, -3), (-31, 0), (0, -15), (-40, 2), (72, 0), (0, 200)]
)
def test_boxes_inside_and_over_the_edges(x: int, y: int) -> None:
    for seed, style in SCHEDULES[::3]:
        found = execute(text(GOOD, x, y), given(tensor_map()), Shape(), seed, style)[0]
        np.testing.assert_array_equal(found.view(np.uint16)[:512].reshape(16, 32), box_at(x, y))


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzles(swizzle: int) -> None:
    """Chunk c of 16 bytes of row r lies at chunk c ^ f(r), where f counts the rows of 128 bytes."""
    box = (swizzle // 2, 16)
    found = execute(text(GOOD, 3, 2, 16 * swizzle, swizzle // 8), given(tensor_map(swizzle, box)))[0]
    chunks = found.view(np.uint16)[: 16 * swizzle // 2].reshape(-1, 8)
    per_row = swizzle // 16
    expected = np.zeros_like(chunks)
    for row in range(16):
        line = row * swizzle // 128 % 8  # which 128 bytes of an atom of 1024
        flip = {32: line // 1 % 2, 64: line % 4, 128: line}[swizzle]
        for chunk in range(per_row):
            place = row * per_row + chunk  # of 16 bytes
            block, inside = place // per_row * per_row, place % per_row
            expected[block + (inside ^ (flip if swizzle == 128 else flip % per_row))] = box_at(3, 2, box)[
                row, 8 * chunk : 8 * chunk + 8
            ]
    np.testing.assert_array_equal(chunks, expected)


def test_every_schedule_waits_for_all_bytes() -> None:
    expected = np.zeros(512, np.uint32)
    expected = np.concatenate([np.ascontiguousarray(box_at(4, 4)).view(np.uint32).reshape(-1)])
    always(text(GOOD, 4, 4), given(tensor_map(), result=Fresh((256,))), expected)
    two = INIT + EXPECT + MARKED + MARKED.replace("[s]", "[s+1024]") + WAIT + DUMP
    twice = np.tile(expected, 2)
    always(text(two, 4, 4, 2048, 16), given(tensor_map()), twice)


def test_the_expectation_may_follow_the_copy() -> None:
    """The transfers of a phase may be counted before they are expected, as long as the arrival is missing."""
    late = INIT + COPY + EXPECT + WAIT + DUMP
    always(
        text(late),
        given(tensor_map(), result=Fresh((256,))),
        np.ascontiguousarray(box_at(0, 0)).view(np.uint32).reshape(-1),
    )


def test_bytes_too_few_and_too_many() -> None:
    fails(Deadlock, text(GOOD.replace(HERE, ""), size=1040), given(tensor_map()), says="16 bytes missing")
    few = text(GOOD, size=512)
    for seed, style in SCHEDULES:
        with pytest.raises((InFlightError, RaceError, BarrierError, Deadlock)):
            execute(few, given(tensor_map()), Shape(), seed, style)


def test_a_read_without_a_wait_is_found_by_every_schedule() -> None:
    deaf = INIT + EXPECT + COPY + DUMP
    for seed, style in SCHEDULES:
        with pytest.raises((InFlightError, RaceError)):
            execute(text(deaf), given(tensor_map()), Shape(), seed, style)
    other = GOOD.replace(
        "try_wait.parity.shared::cta.b64 %p2, [bar], 0", "try_wait.parity.shared::cta.b64 %p2, [bar], 1"
    )
    for seed, style in SCHEDULES:
        with pytest.raises((InFlightError, RaceError)):
            execute(text(other), given(tensor_map()), Shape(), seed, style)


def test_multicast_to_both_blocks() -> None:
    send = """
    mov.u32 %r5, %cluster_ctarank; setp.eq.u32 %p4, %r5, 0; and.pred %p4, %p4, %p1; mov.u16 %h1, MASK;
    @%p4 NAME.multicast::cluster [s], [%d2, {%r2, %r3}], [bar], %h1; // here
"""
    body = INIT + SYNC + EXPECT + send.replace("NAME", NAME) + WAIT + DUMP + SYNC
    expected = np.tile(np.ascontiguousarray(box_at(5, 1)).view(np.uint32).reshape(-1), 2)
    both = body.replace("MASK", "3").replace("2048, 0", "1024, 0")
    always(text(both, 5, 1), given(tensor_map()), expected, PAIR)
    one = body.replace("MASK", "1").replace(DUMP, DUMP.replace(HERE, "")).replace(f"; {HERE}", ";")
    fails(Deadlock, text(one, 5, 1), given(tensor_map()), PAIR, "1024 bytes missing")
    fails(MemoryFault, text(body.replace("MASK", "7"), 5, 1), given(tensor_map()), PAIR, "no block of rank 2")
    early = body.replace("MASK", "3").replace(INIT + SYNC, INIT)
    for seed, style in SCHEDULES:
        with pytest.raises((BarrierError, RaceError, InFlightError)):
            execute(text(early, 5, 1), given(tensor_map()), PAIR, seed, style)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (("[s]", "[s+64]"), MemoryFault, "no multiple of 128"),
        (("[s]", "[s+3328]"), MemoryFault, "does not fit"),
        (("[%d2,", "[%d2+64,"), MemoryFault, "no tensor map|not in"),
        (("[%d2,", "[%d2+32,"), MemoryFault, "no multiple of 64"),
        (("], [bar]", "], [s+2048]"), BarrierError, "no mbarrier"),
        (("{%r2, %r3}", "{%r2, %r9}"), PoisonError, "a coordinate"),
    ],
)
def test_wrong_operands(change: tuple[str, str], kind, says: str) -> None:
    body = INIT + EXPECT + MARKED.replace(*change) + WAIT
    fails(kind, text(body), given(tensor_map()), says=says)


def test_wrong_ranks() -> None:
    three = MARKED.replace("2d", "3d").replace("%r3}", "%r3, %r3}")
    fails(MemoryFault, text(INIT + EXPECT + three), given(tensor_map()), says="rank")
    with pytest.raises(UnknownInstruction, match="coordinates"):
        execute(text(INIT + MARKED.replace("2d", "3d")), given(tensor_map()))


def test_tensor_maps() -> None:
    body = text(INIT + EXPECT + MARKED + WAIT)
    fails(MemoryFault, body, given(bytes(range(128))), says="no tensor map")
    fails(MemoryFault, body, given(tensor_map(sizes=(COLUMNS, 2 * ROWS)), TENSOR[:15]), says="beyond|no allocation")
    fails(MemoryFault, body, given(tensor_map(address=address(7))), says="no allocation")
    fails(PoisonError, body, given(tensor_map(), Fresh((ROWS, COLUMNS), np.uint16)), says="was not written")
    fails(UnknownInstruction, body, given(replace(tensor_map(), fill_nan=True)), says="NaN")
    fails(UnknownInstruction, body, given(replace(tensor_map(), element_strides=(1, 2))), says="element strides")


def test_what_is_in_the_way() -> None:
    """An mbarrier in the box; what another warp reads; what another copy writes; the end of the block."""
    inside = INIT + "    @%p1 mbarrier.init.shared::cta.b64 [s+512], 1;\n" + EXPECT + MARKED + WAIT
    for seed, style in SCHEDULES:
        with pytest.raises((InFlightError, RaceError), match="line"):
            execute(text(inside), given(tensor_map()), Shape(), seed, style)
    twice = INIT + EXPECT + COPY + MARKED + WAIT
    fails((InFlightError, RaceError), text(twice, size=2048), given(tensor_map()))
    stored = INIT + EXPECT + COPY + f"    @%p1 st.shared.u32 [s+512], 5; {HERE}\n" + WAIT
    for seed, style in SCHEDULES:
        with pytest.raises((InFlightError, RaceError)):
            execute(text(stored), given(tensor_map()), Shape(), seed, style)
    for seed, style in SCHEDULES:
        if style != "eager":
            with pytest.raises((InFlightError, BarrierError), match="ends while|has ended"):
                execute(text(INIT + EXPECT + COPY), given(tensor_map()), Shape(), seed, "late")


def test_reads_of_the_round_before_must_be_over() -> None:
    body = (
        """
    st.shared.u32 [s], 5;
    bar.sync 0;
    setp.ge.u32 %p5, %tid, 32;
    @%p5 ld.shared.u32 %r1, [s]; // here
    fence.proxy.async.shared::cta;
    BARRIER
"""
        + EXPECT
        + MARKED
        + WAIT
    )
    for barrier in ("bar.sync 0;", ""):
        whole = text(INIT + body.replace("BARRIER", barrier))
        if barrier:
            execute(whole, given(tensor_map()), Shape(block=64))
        else:
            fails((InFlightError, RaceError), whole, given(tensor_map()), Shape(block=64))
