"""Clusters of blocks, launches that overlap, register budgets."""

from __future__ import annotations

import numpy as np
from ptx.errors import BarrierError, Deadlock, MemoryFault, RaceError
from ptx_blocks import OWN, SHARED, STORE, faulty, out, shown
from ptx_text import HERE, SCHEDULES, Shape, execute, kernel

LANES = np.arange(32, dtype=np.uint32)


# Clusters

PAIR = Shape(grid=4, block=32, cluster=(2, 1, 1))


def test_special_registers() -> None:
    text = """
    mov.u32 %r1, %cluster_ctarank;
    mov.u32 %r2, %cluster_nctarank;
    mov.u32 %r3, %clusterid.x;
    mov.u32 %r4, %nclusterid.x;
    mov.u32 %r5, %cluster_ctaid.x;
    mov.u32 %r6, %lanemask_lt; mov.u32 %r7, %lanemask_ge; add.u32 %r6, %r6, %r7;
    mov.u32 %r8, %lanemask_le; mov.u32 %r9, %lanemask_gt; add.u32 %r8, %r8, %r9;
    and.b32 %r6, %r6, %r8;
    mad.lo.u32 %r1, %r2, 10, %r1;
    mad.lo.u32 %r1, %r3, 100, %r1;
    mad.lo.u32 %r1, %r4, 1000, %r1;
    mad.lo.u32 %r1, %r5, 10000, %r1;
    mov.u32 %r10, %nctaid.x; mad.lo.u32 %r1, %r10, 100000, %r1;
    not.b32 %r6, %r6; add.u32 %r1, %r1, %r6;
"""
    block = np.repeat(np.arange(4), 32)
    rank = block % 2
    shown(text, rank + 20 + 100 * (block // 2) + 2000 + 10000 * rank + 400000, PAIR)


def test_threads_in_three_dimensions() -> None:
    text = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
    mad.lo.u32 %r1, %r2, 10, %r1; mad.lo.u32 %r1, %r3, 100, %r1;
    mov.u32 %r4, %laneid; mov.u32 %r5, %warpid;
    mad.lo.u32 %r1, %r4, 1000, %r1; mad.lo.u32 %r1, %r5, 100000, %r1;
    mad.lo.u32 %r6, %r5, 32, %r4; mul.wide.u32 %d1, %r6, 4; add.s64 %mine, %out, %d1;
"""
    index = np.arange(60)
    x, y, z = index % 4, index // 4 % 3, index // 12
    expected = x + 10 * y + 100 * z + 1000 * (index % 32) + 100000 * (index // 32)
    shown(text, expected, Shape(block=(4, 3, 5)))


REMOTE = (
    OWN
    + """
    mov.u32 %r2, %cluster_ctarank;
    xor.b32 %r3, %r2, 1;
    mad.lo.u32 %r4, %block, 100, %tid;
    st.shared.u32 [%r20], %r4; // here
    FIRST
    mapa.shared::cluster.u32 %r5, %r20, %r3;
    ld.shared::cluster.u32 %r1, [%r5]; // here
    LAST
"""
)
SYNC = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"


def test_shared_memory_of_the_other_block() -> None:
    block = np.repeat(np.arange(4), 32)
    shown(REMOTE.replace("FIRST", SYNC).replace("LAST", SYNC), 100 * (block ^ 1) + np.tile(LANES, 4), PAIR)
    faulty(RaceError, REMOTE.replace("FIRST", "").replace("LAST", SYNC), PAIR)
    faulty(RaceError, REMOTE.replace("FIRST", "bar.sync 0;").replace("LAST", SYNC), PAIR)


def test_a_block_that_ends_too_early() -> None:
    """The last barrier is missing: some schedules read the memory of a block that has ended."""
    text = kernel(REMOTE.replace("FIRST", SYNC).replace("LAST", "") + STORE, shared=SHARED, out="u64")
    said = []
    for seed, style in SCHEDULES:
        try:
            execute(text, [out(PAIR)], PAIR, seed, style)
        except MemoryFault as problem:
            said.append(str(problem))
    assert said and all("has ended" in one for one in said)


def test_cluster_barriers_against_their_rules() -> None:
    arrive, wait = SYNC.split("; ")
    faulty(BarrierError, f"{arrive}; {arrive}; {HERE}", PAIR, says="twice")
    faulty(BarrierError, f"{wait} {HERE}", PAIR, says="has not arrived")
    absent = f"mapa.shared::cluster.u32 %r5, %r20, 2;\n ld.shared::cluster.u32 %r1, [%r5]; {HERE}"
    faulty(MemoryFault, OWN + absent, PAIR, says="no block of rank 2")
    one = f"    setp.eq.u32 %p1, %warp, 0;\n    @%p1 bra DONE;\n    {arrive};\n    {wait} {HERE}\n"
    one += f"DONE:\n    bar.sync 0; {HERE}\n"
    faulty(Deadlock, one, Shape(2, 64, cluster=(2, 1, 1)), says="waits at the barrier of the cluster")
