"""Faults of the kernels of csrc/cuda that any card runs: query, few, scan_sm80, decide, splice."""

from __future__ import annotations

from ptx_faults import Fault, both, drop, put

IN_USE = {"RaceError", "InFlightError"}  # something is touched while something else still uses it
LOST = IN_USE | {"PoisonError"}  # or it was never written
WAIT, COMMIT = r"cp\.async\.wait_group", r"cp\.async\.commit_group"
BAR, GRID_WAIT = r"bar\.sync", r"griddepcontrol\.wait"
MATRIX = r"(ldmatrix\S*) \{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}"
MMA = r"(mma\.sync\S* \{[^}]*\}), \{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}"
FETCHED = r"setp\.eq\.s32\s+(%p\d+), (%r\d+), {stages};"
ALL_LANES = r"(mov\.u32\s+%r\d+), -1;"
EITHER = r"or\.pred\s+(%p\d+), (%p\d+), (%p\d+);"


def scan_sm80() -> list[tuple]:
    return [
        ("no wait", "A stage is read in flight.", IN_USE, drop(WAIT, 0)),
        ("wait for too few", "Two groups may be in flight.", IN_USE, put(r"(wait_group) 1;", r"\1 2;", 0)),
        ("no first commit", "Two stages are one group.", IN_USE, drop(COMMIT, 0)),
        ("no commit in the loop", "Later stages are in no group.", IN_USE, drop(COMMIT, -1)),
        ("no barrier in the ring", "Others' copies are not waited for.", IN_USE, drop(BAR, 0)),
        ("no barrier before reuse", "Keys overwrite a stage that is read.", IN_USE, drop(BAR, 1)),
        ("no barrier behind keys", "Keys are read before they are written.", LOST, drop(BAR, 2)),
        ("matrices exchanged", "Two registers of ldmatrix.", {"results"}, put(MATRIX, r"\1 {\3,\2,\4,\5}", 0)),
        ("fragments exchanged", "Two registers of A.", {"results"}, put(MMA, r"\1, {\2,\4,\3,\5}", 0)),
        (
            "sum forgotten",
            "A product begins from zero.",
            {"results"},
            put(r"(mma\.sync[^;]*), \{[^}]*\};", r"\1, {0f00000000,0f00000000,0f00000000,0f00000000};", 40),
        ),
        ("copies not swizzled", "ldmatrix swizzles alone.", {"results"} | LOST, put(r"xor\.b32(\s+%r\d+, %r\d+), %r\d+;", r"mov.b32\1;", 0)),
        ("ring of two", "Copies use two stages of three.", IN_USE, put(FETCHED.format(stages=3), r"setp.eq.s32 \1, \2, 2;", 0)),
        ("ring of four", "Copies use a fourth stage.", {"MemoryFault"}, put(FETCHED.format(stages=3), r"setp.eq.s32 \1, \2, 4;", 0)),
        ("no mask of rows", "Rows behind n.", {"MemoryFault"}, put(EITHER, r"mov.pred \1, \2;", -1)),
    ]


def few() -> list[tuple]:
    four = FETCHED.format(stages=4)
    return [
        ("no wait", "A stage is read in flight.", IN_USE, drop(WAIT, 0)),
        ("wait for too few", "Three groups may be in flight.", IN_USE, put(r"(wait_group) 2;", r"\1 3;", 0)),
        ("no commit in the loop", "Later stages are in no group.", IN_USE, drop(COMMIT, -1)),
        ("no barrier in the ring", "Others' copies are not waited for.", LOST, drop(BAR, 0)),
        ("no barrier behind keys", "Keys are read too early.", LOST, drop(BAR, 1)),
        ("fragments exchanged", "Two registers of A.", {"results"}, put(MMA, r"\1, {\2,\4,\3,\5}", 0)),
        ("ring of three", "Copies use three stages.", IN_USE, put(four, r"setp.eq.s32 \1, \2, 3;", 1)),
        ("no query", "A store of queries is left out.", {"PoisonError", "results"}, drop(r"st\.shared\.v4", 0)),
    ]


def query() -> list[tuple]:
    zeros = r"st\.global\.v4\.u32\s+\[%rd\d+\], \{%r(\d+), %r\1, %r\1, %r\1\}"
    return [
        ("no zeros", "Padding rows are not written.", {"PoisonError"}, drop(zeros)),
        ("no error bound", "Rounding errors are not written.", {"PoisonError"}, drop(r"st\.global(?!\.v4\.u32)", -1)),
        ("half a warp", "A shuffle names 16 lanes.", {"Divergence"}, put(ALL_LANES, r"\1, 65535;")),
        ("norm of half a row", "A shuffle is left out.", {"results"}, put(r"shfl\.sync\.bfly\.b32\s+(%r\d+)\|%p\d+, (%r\d+),[^;]*;", r"mov.b32 \1, 0;", 0)),
    ]


def decide() -> list[tuple]:
    """On rows with equal cosines, so that all warps work on them together."""
    vote = r"bar\.red\.or\.pred\s+(%p\d+), 0, (%p\d+);"
    return [
        ("gathered too early", "Warps read before others wrote.", LOST, drop(BAR, 2)),
        ("gathered too late", "Warps write before others read.", LOST, drop(BAR, 3)),
        ("published too early", "A task is read before it is there.", LOST, drop(BAR, 4)),
        (
            "each for itself",
            "A warp asks itself whether any warp wants help.",
            {"Divergence", "Deadlock", "BarrierError", "results"} | LOST,
            put(vote, r"bar.sync 0; mov.pred \1, \2;"),
        ),
        ("no grid wait", "Keys are read before they are written.", {"PoisonError"}, drop(GRID_WAIT)),
    ]


def splices() -> list[tuple]:
    splice, backward = "splice", "splice backward"
    return [
        ("no first barrier", "The slot is reset after it was found.", splice, {"RaceError"}, drop(BAR, 0)),
        ("no second barrier", "The slot is read before it is found.", splice, {"RaceError"}, drop(BAR, 1)),
        ("slot not reset", "The slot is what was there.", splice, {"PoisonError"}, drop(r"st\.shared\.u64", 0)),
        ("no bound of owners", "A prompt that does not exist.", splice, {"MemoryFault"}, put(r"and\.pred\s+(%p\d+), (%p\d+), %p\d+;", r"mov.pred \1, \2;", 0)),
        ("half a warp", "A ballot names 16 lanes.", backward, {"Divergence"}, put(ALL_LANES, r"\1, 65535;", -1)),
        ("no mask of columns", "Columns behind the last.", backward, {"MemoryFault", "results"}, drop(r"bra\s+\$L__BB\d+_33")),
        ("a row too many", "Bits of carriers are kept.", backward, {"Deadlock", "results"}, put(r"(setp\.eq\.s64\s+%p\d+, %rd\d+), %rd\d+;(\s+.*\s+.*\s+.*\s*vote)", r"\1, 0;\2")),
    ]


def made(on: str, kernel: str, faults: list[tuple]) -> list[Fault]:
    return [Fault(name, says, on, kernel, expected, edit) for name, says, expected, edit in faults]


FAULTS = [
    *made("sm80", "nearest_scan_sm80_kernel", scan_sm80()),
    *made("few ring", "nearest_few_kernel", few()),
    *made("few", "nearest_few_kernel", [("no grid wait", "Queries are read too early.", {"PoisonError"}, drop(GRID_WAIT))]),
    *made("few", "nearest_few_kernel", [("no mask of rows", "Rows behind n.", {"MemoryFault"}, put(r"setp\.ge\.s32(\s+%p\d+, %r\d+), %r\d+;(\s+(?:\.loc.*\s+|//.*\s+)*bar\.sync)", r"setp.gt.s32\1, 15;\2"))]),
    *made("few", "nearest_query_kernel", query()),
    *made("ties", "nearest_decide_kernel", decide()),
    *[Fault(name, says, on, on.replace(" ", "_") + "_kernel", e, edit) for name, says, on, e, edit in splices()],
]

# Edits that do no harm, with the reason.
HARMLESS = [
    *made("sm80", "nearest_scan_sm80_kernel", [("no last wait", "The groups behind the last stage are empty.", set(), drop(WAIT, -1))]),
    *made("few ring", "nearest_few_kernel", [("no last wait", "The same holds for few queries.", set(), drop(WAIT, -1))]),
    *made(
        "few",
        "nearest_few_kernel",
        [
            (
                "next kernel begins at once",
                "It waits itself until this one has ended.",
                set(),
                both(drop(r"griddepcontrol\.launch_dependents"), put(r"(cp\.async\.commit_group;)", r"\1 griddepcontrol.launch_dependents;", 0)),
            )
        ],
    ),
]
