"""Launches: those that no device accepts, those that overlap; register budgets."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import BarrierError, Deadlock, LaunchError, PoisonError, UnknownInstruction
from ptx_text import SCHEDULES, Fresh, Shape, always, execute, fails, kernel

OUT = Fresh((32,))
STORE = "    st.global.u32 [%mine], %r1;\n"


def out(shape: Shape) -> Fresh:
    return Fresh((shape.grid * int(np.prod(shape.block)),))


@pytest.mark.parametrize(
    ("shape", "arguments", "says"),
    [
        (Shape(), [np.uint64(0), np.uint32(0)], "parameters"),
        (Shape(), [np.uint32(0)], r"\[8\] bytes, the launch has \[4\]"),
        (Shape(block=1025), [np.uint64(0)], "1025"),
        (Shape(block=0), [np.uint64(0)], "block"),
        (Shape(grid=0), [np.uint64(0)], "grid"),
        (Shape(grid=3, cluster=(2, 1, 1)), [np.uint64(0)], "multiple of the cluster"),
        (Shape(shared=228 << 10), [np.uint64(0)], "shared memory"),
    ],
)
def test_launches_that_no_device_accepts(shape: Shape, arguments: list, says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        execute(kernel("", out="u64"), arguments, shape)


def test_threads_that_the_kernel_does_not_allow() -> None:
    for rules, threads in ((".maxntid 64, 1, 1", 96), (".reqntid 64", 32), (".reqnctapercluster 2, 1, 1", 32)):
        with pytest.raises(LaunchError):
            execute(kernel("", rules=rules, out="u64"), [OUT], Shape(block=threads))
    with pytest.raises(UnknownInstruction):
        execute(kernel("mov.u32 %r1, %clock_of_the_tower;", out="u64"), [OUT])


# Dependent launches

WRITES = "    griddepcontrol.launch_dependents;\n    mov.u32 %r1, 5;\n" + STORE
READS = "    WAIT\n    ld.global.u32 %r1, [%mine];\n    add.u32 %r1, %r1, 1;\n" + STORE
OVERLAPS = Shape(grid=2, block=64, overlaps=True)


def test_launches_that_overlap() -> None:
    pair = [kernel(WRITES, out="u64"), kernel(READS.replace("WAIT", "griddepcontrol.wait;"), out="u64")]
    always(pair, [out(OVERLAPS)], np.full(128, 6), OVERLAPS)
    pair[1] = kernel(READS.replace("WAIT", ""), out="u64")
    always(pair, [out(OVERLAPS)], np.full(128, 6), Shape(grid=2, block=64))
    seen = 0
    for seed, style in SCHEDULES:
        try:
            execute(pair, [out(OVERLAPS)], OVERLAPS, seed, style)
        except PoisonError:
            seen += 1
    assert seen >= 10


def test_a_launch_that_is_not_allowed_to_begin_early() -> None:
    pair = [kernel(WRITES.split("\n", 1)[1], out="u64"), kernel(READS.replace("WAIT", ""), out="u64")]
    always(pair, [out(OVERLAPS)], np.full(128, 6), OVERLAPS)


# Registers

GROUPS = Shape(block=256)
MOVE = """
    setp.lt.u32 %p1, %tid, 128;
    @%p1 bra FEW;
    setmaxnreg.inc.sync.aligned.u32 {more}; // here
    bra DONE;
FEW:
    setmaxnreg.dec.sync.aligned.u32 {less};
DONE:
    mov.u32 %r1, 4;
"""


def moving(more: int) -> str:
    rules = ".maxntid 256, 1, 1 .minnctapersm 1 .maxnreg 128"
    return kernel(MOVE.format(more=more, less=24) + STORE, rules=rules, out="u64")


def test_registers_move_from_one_warp_group_to_the_other() -> None:
    always(moving(232), [out(GROUPS)], np.full(256, 4), GROUPS)
    fails(Deadlock, moving(240), [out(GROUPS)], GROUPS, "waits for 240 registers")
    fails(BarrierError, moving(120), [out(GROUPS)], GROUPS, "wrong direction")
