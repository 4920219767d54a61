"""Faults of Triton's kernels, as Triton compiles them for sm_90."""

from __future__ import annotations

from ptx_faults import Fault, drop, put

IN_USE = {"RaceError", "InFlightError"}  # something is touched while something else still uses it
WAIT = r"mbarrier\.try_wait\S* complete, \[(%r\d+)\], (%r\d+);"
BAR, LOAD = r"bar\.sync", r"cp\.async\.bulk\.tensor"
BYTES = r"(mbarrier\.arrive\.expect_tx[^;]*), 18432;"
DESCRIPTOR = 0x4000004000000000


def few() -> list[tuple]:
    return [
        ("no wait", "A stage is multiplied before it is full.", IN_USE, put(WAIT, r"setp.eq.s32 complete, \1, \1;")),
        ("too few bytes", "The first stage expects less.", IN_USE | {"Deadlock"}, put(BYTES, r"\1, 16384;", 0)),
        ("too many bytes", "The first stage expects more.", {"Deadlock"}, put(BYTES, r"\1, 20480;", 0)),
        ("no init", "A barrier is not initialised.", {"BarrierError"}, drop(r"mbarrier\.init", 0)),
        ("no barrier behind init", "Barriers are used at once.", {"BarrierError", "RaceError"}, drop(BAR, *range(10))),
        ("no load", "A tile is not loaded.", {"Deadlock"}, drop(LOAD, 1)),
        ("every lane loads", "A load has no guard.", IN_USE | {"BarrierError"}, put(rf"@%p\d+ ({LOAD})", r"\1", 0)),
        ("no wait in the loop", "A stage is refilled in use.", IN_USE, drop(r"wgmma\.wait_group\S* 1")),
        ("no barrier before refill", "Other warps may still read.", IN_USE, drop(BAR, 10, 11, 12)),
        ("no last wait", "Accumulators are read in flight.", {"InFlightError"}, drop(r"wgmma\.wait_group\S* 0")),
        ("no fence", "Nothing orders accumulators.", {"InFlightError"}, drop(r"wgmma\.fence")),
        ("no commit", "Products are in no group.", {"InFlightError"}, drop(r"wgmma\.commit_group")),
        ("no swizzle", "A is read unswizzled.", {"results"}, put(str(DESCRIPTOR), str(DESCRIPTOR - (1 << 62)), 0)),
        ("no mask of rows", "Rows behind n.", {"MemoryFault"}, put(r"@%p\d+ (st\.global)", r"\1", -1)),
    ]


FAULTS = [
    *[
        Fault(name, says, "triton few", "_nearest_scan_few_kernel", expected, edit)
        for name, says, expected, edit in few()
    ],
    Fault(
        "no fence.proxy.async",
        "A load overwrites what ordinary stores wrote.",
        "triton many",
        "_nearest_scan_many_kernel",
        {"InFlightError"},
        drop(r"fence\.proxy\.async"),
    ),
    Fault(
        "no mask of columns",
        "Columns behind the last.",
        "triton splice backward",
        "_splice_backward_kernel",
        {"MemoryFault"},
        put(r"@%p\d+ (st\.global)", r"\1", -1),
    ),
]
