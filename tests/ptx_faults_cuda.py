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


def ring_sm80() -> list[tuple]:
    three = FETCHED.format(stages=3)
    return [
        ("no wait", "A stage is read in flight.", IN_USE, drop(WAIT, 0)),
        ("wait for too few", "Two groups may be in flight.", IN_USE, put(r"(wait_group) 1;", r"\1 2;", 0)),
        ("no first commit", "Two stages are one group.", IN_USE, drop(COMMIT, 0)),
        ("no commit in the loop", "Later stages are in no group.", IN_USE, drop(COMMIT, -1)),
        ("no barrier in the ring", "Others' copies are not waited for.", IN_USE, drop(BAR, 0)),
        ("no barrier before reuse", "Keys overwrite a stage that is read.", IN_USE, drop(BAR, 1)),
        ("ring of four", "Copies use a fourth stage.", {"MemoryFault"}, put(three, r"setp.eq.s32 \1, \2, 4;", 0)),
        ("reading two stages", "The third stage is not read.", IN_USE, put(three, r"setp.eq.s32 \1, \2, 2;", 1)),
    ]


def scan_sm80() -> list[tuple]:
    copied = put(r"xor\.b32(\s+%r\d+, %r\d+), %r\d+;", r"mov.b32\1;", 0)
    zero = r"\1, {0f00000000,0f00000000,0f00000000,0f00000000};"
    return [
        ("no barrier behind keys", "Keys are read before they are written.", LOST, drop(BAR, 2)),
        ("matrices exchanged", "Two registers of ldmatrix.", {"results"}, put(MATRIX, r"\1 {\3,\2,\4,\5}", 0)),
        ("fragments exchanged", "Two registers of A.", {"results"}, put(MMA, r"\1, {\2,\4,\3,\5}", 0)),
        ("forgotten sum", "A product begins from zero.", {"results"}, put(r"(mma\.sync[^;]*), \{[^}]*\};", zero, 48)),
        ("copies not swizzled", "ldmatrix swizzles alone.", {"PoisonError"}, copied),
        ("no mask of rows", "Rows behind n are written.", {"MemoryFault"}, put(EITHER, r"mov.pred \1, \2;", -1)),
    ]


def ring_few() -> list[tuple]:
    four = FETCHED.format(stages=4)
    return [
        ("no wait", "A stage is read in flight.", IN_USE, drop(WAIT, 0)),
        ("wait for too few", "Three groups may be in flight.", IN_USE, put(r"(wait_group) 2;", r"\1 3;", 0)),
        ("no commit in the loop", "Later stages are in no group.", IN_USE, drop(COMMIT, -1)),
        ("no barrier in the ring", "Others' copies are not waited for.", IN_USE, drop(BAR, 0)),
        ("no barrier behind keys", "Keys are read before they are written.", LOST, drop(BAR, 1)),
        ("ring of five", "Copies use a fifth stage.", {"MemoryFault"}, put(four, r"setp.eq.s32 \1, \2, 5;", 1)),
        ("reading three stages", "The fourth stage is not read.", IN_USE, put(four, r"setp.eq.s32 \1, \2, 3;", 2)),
        ("no query", "A store of queries is left out.", {"PoisonError"}, drop(r"st\.shared\.v4", 0)),
    ]


def scan_few() -> list[tuple]:
    less = r"setp\.ge\.s32(\s+%p\d+, %r\d+), %r\d+;(\s+(?:\.loc.*\s+|//.*\s+)*bar\.sync)"
    return [
        ("no grid wait", "Queries are read before they are written.", {"PoisonError"}, drop(GRID_WAIT)),
        ("no mask of rows", "Rows behind n are written.", {"MemoryFault"}, put(less, r"setp.gt.s32\1, 15;\2")),
        ("fragments exchanged", "Two registers of A.", {"results"}, put(MMA, r"\1, {\2,\4,\3,\5}", 0)),
    ]


def query() -> list[tuple]:
    """With the kernel that an error names."""
    scan, decision = "nearest_few_kernel", "nearest_decide_kernel"
    zeros = r"st\.global\.v4\.u32\s+\[%rd\d+\], \{%r(\d+), %r\1, %r\1, %r\1\}"
    shuffle = r"shfl\.sync\.bfly\.b32\s+(%r\d+)\|%p\d+, (%r\d+),[^;]*;"
    return [
        ("no zeros", "Padding rows are not written.", {"PoisonError"}, drop(zeros), scan),
        ("no error bound", "Errors are not written.", {"PoisonError"}, drop(r"st\.global(?!\.v4\.u32)", -1), decision),
        ("half a warp", "A shuffle names 16 lanes.", {"Divergence"}, put(ALL_LANES, r"\1, 65535;")),
        ("norm of half a row", "A step of a sum is left out.", {"results"}, put(shuffle, r"mov.b32 \1, 0;", 8, 9)),
    ]


def decide() -> list[tuple]:
    inside = r"setp\.le\.s64(\s+%p\d+, %rd\d+, %rd\d+);"
    return [("no bound of ids", "Padding rows have ids.", {"MemoryFault"}, put(inside, r"setp.lt.s64 \1;", 2, 3))]


def decide_together() -> list[tuple]:
    """On rows with equal cosines, on which all warps work."""
    vote = r"bar\.red\.or\.pred\s+(%p\d+), 0, (%p\d+);"
    return [
        ("gathered too early", "Warps read before others wrote.", LOST, drop(BAR, 2)),
        ("gathered too late", "Warps write before others read.", LOST, drop(BAR, 3)),
        ("published too early", "A task is read before it is there.", LOST, drop(BAR, 4)),
        (
            "each for itself",
            "No warp asks the others.",
            LOST | {"BarrierError"},
            put(vote, r"bar.sync 0; mov.pred \1, \2;"),
        ),
    ]


def splice() -> list[tuple]:
    inside = r"and\.pred\s+(%p\d+), (%p\d+), %p\d+;"
    return [
        ("no second barrier", "The slot is read before it is found.", {"RaceError"}, drop(BAR, 1)),
        ("slot not reset", "The slot is what was there.", {"PoisonError"}, drop(r"st\.shared\.u64", 0)),
        ("no bound of owners", "A prompt that does not exist.", {"MemoryFault"}, put(inside, r"mov.pred \1, \2;", 0)),
    ]


def splice_backward() -> list[tuple]:
    last = r"setp\.ge\.s64\s+(%p\d+), (%rd\d+), %rd\d+;"
    equal = r"(setp\.eq\.s64\s+%p\d+, %rd\d+), %rd\d+;(\s+.*\s+.*\s+.*\s*vote)"
    return [
        ("half a warp", "A ballot names 16 lanes.", {"Divergence"}, put(ALL_LANES, r"\1, 65535;", -1)),
        ("no mask of columns", "Columns behind the last.", {"MemoryFault"}, put(last, r"setp.ne.s64 \1, \2, \2;", -1)),
        ("another prompt", "All prompts are the first.", {"results"}, put(equal, r"\1, 0;\2")),
    ]


def made(on: str, kernel: str, faults: list[tuple]) -> list[Fault]:
    return [
        Fault(name, says, on, kernel, expected, edit, seen_in=more[0] if more else kernel)
        for name, says, expected, edit, *more in faults
    ]


SM80, FEW = "nearest_scan_sm80_kernel", "nearest_few_kernel"
FAULTS = [
    *made("sm80 ring", SM80, ring_sm80()),
    *made("sm80", SM80, scan_sm80()),
    *made("few ring", FEW, ring_few()),
    *made("few", FEW, scan_few()),
    *made("few", "nearest_query_kernel", query()),
    *made(
        "few", "nearest_decide_kernel", [("no grid wait", "Keys are read too early.", {"PoisonError"}, drop(GRID_WAIT))]
    ),
    *made("decide", "nearest_decide_kernel", decide()),
    *made("ties", "nearest_decide_kernel", decide_together()),
    *made("splice", "splice_kernel", splice()),
    *made(
        "splice long",
        "splice_kernel",
        [("no first barrier", "The slot is reset too late.", {"RaceError"}, drop(BAR, 0))],
    ),
    *made("splice backward", "splice_backward_kernel", splice_backward()),
]

BEGIN = both(
    drop(r"griddepcontrol\.launch_dependents"),
    put(r"(cp\.async\.commit_group;)", r"\1 griddepcontrol.launch_dependents;", 0),
)
# Edits that do no harm, with the reason.
HARMLESS = [
    *made("sm80", SM80, [("no last wait", "The groups behind the last stage are empty.", set(), drop(WAIT, -1))]),
    *made("few", FEW, [("no last wait", "The groups behind the last stage are empty.", set(), drop(WAIT, -1))]),
    *made(
        "few",
        FEW,
        [("next kernel begins at once", "All kernels behind it wait themselves until it has ended.", set(), BEGIN)],
    ),
]
