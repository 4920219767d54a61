"""Faults of csrc/cuda/scan_sm90.cu: its ring of stages, its cluster, bulk copies, products, registers, masks."""

from __future__ import annotations

from ptx_faults import Fault, drop, put, with_map, with_shared

# In the order of the PTX: the consumers' wait for a full stage, the producer's wait for an empty one.
FULL, EMPTY = 0, 1
WAIT = r"\.reg \.pred done;\nagain:\n(mbarrier\.try_wait\S*) done, \[(%r\d+)\], (%r\d+);"
NO_WAIT = r".reg .pred done;\nagain:\nsetp.eq.s32 done, \2, \2;"
TURNED = r".reg .pred done; .reg .b32 turned; xor.b32 turned, \3, 1;\nagain:\n\1 done, [\2], turned;"
FLIP = r"xor\.b32\s+(%r\d+), \1, %r\d+;"
NEXT_STAGE = r"selp\.b32\s+(%r\d+), 0, %r\d+, %p\d+;"
LOAD = r"cp\.async\.bulk\.tensor"
ARRIVE = r"mbarrier\.arrive\.shared::cluster"
MAPA = r"mapa\.shared::cluster\.u32 remote, (%r\d+), %r\d+;"
OWN = r"mov.u32 remote, %cluster_ctarank;\nmapa.shared::cluster.u32 remote, \1, remote;"
CLUSTER = r"barrier\.cluster\.arrive\S*;\s*barrier\.cluster\.wait"
DESCRIPTOR = 0x4000004000010000
IN_USE = {"RaceError", "InFlightError"}  # something is touched while something else still uses it
EARLY = IN_USE | {"BarrierError"}  # or a phase gets too many arrivals


def barriers() -> list[tuple]:
    ring = "sm90 ring"
    return [
        ("full: no wait", "Consumers multiply a stage that may not be full.", ring, IN_USE, put(WAIT, NO_WAIT, FULL)),
        ("empty: no wait", "The producer loads a stage that may be in use.", ring, EARLY, put(WAIT, NO_WAIT, EMPTY)),
        ("full: other parity", "Consumers wait for the phase before.", ring, IN_USE, put(WAIT, TURNED, FULL)),
        ("empty: other parity", "The producer waits at first.", "sm90", {"Deadlock"}, put(WAIT, TURNED, EMPTY)),
        (
            "full: parity kept",
            "The parity does not change in the second round.",
            ring,
            IN_USE | {"Deadlock"},
            drop(FLIP[:-1], FULL),
        ),
        ("empty: parity kept", "The same for the producer.", ring, EARLY, drop(FLIP[:-1], EMPTY)),
        (
            "consumer's stage kept",
            "Consumers multiply the first stage again and again.",
            ring,
            EARLY,
            put(NEXT_STAGE, r"mov.u32 \1, 0;", FULL),
        ),
        (
            "producer's stage kept",
            "The producer fills the first stage again and again.",
            ring,
            EARLY,
            put(NEXT_STAGE, r"mov.u32 \1, 0;", EMPTY),
        ),
        ("no release", "Consumers do not release a stage in the loop.", ring, {"Deadlock"}, drop(ARRIVE, 0)),
        ("no last release", "The last stage is not released.", "sm90 two items", {"Deadlock"}, drop(ARRIVE, 1)),
        ("release to itself", "Both arrivals go to the own block.", ring, EARLY, put(MAPA, OWN)),
    ]


def counts() -> list[tuple]:
    ring = "sm90 ring"
    return [
        (
            "too few bytes",
            "32768 bytes are expected.",
            "sm90",
            IN_USE | {"Deadlock"},
            put(r"(mov\.u32\s+%r\d+), 49152;", r"\1, 32768;"),
        ),
        (
            "too many bytes",
            "65536 bytes are expected.",
            "sm90",
            {"Deadlock"},
            put(r"(mov\.u32\s+%r\d+), 49152;", r"\1, 65536;"),
        ),
        (
            "two arrivals",
            "An empty barrier counts 2 arrivals, not 4.",
            ring,
            EARLY,
            put(r"(mov\.u32\s+%r\d+), 4;", r"\1, 2;", 0),
        ),
        (
            "eight arrivals",
            "An empty barrier counts 8 arrivals.",
            ring,
            {"Deadlock"},
            put(r"(mov\.u32\s+%r\d+), 4;", r"\1, 8;", 0),
        ),
        ("no init", "A barrier is not initialised.", "sm90", {"BarrierError"}, drop(r"mbarrier\.init", 0)),
        (
            "no first cluster barrier",
            "Nothing waits for the barriers' initialisation.",
            "sm90",
            {"BarrierError", "RaceError"},
            drop(CLUSTER, 0),
        ),
        (
            "no last cluster barrier",
            "A block may end before the other one arrives at its barriers.",
            "sm90",
            {"BarrierError", "RaceError"},
            drop(CLUSTER, -1),
        ),
    ]


def copies() -> list[tuple]:
    offset, coordinates = r"(add\.s32\s+%r\d+, %r\d+), 16384;", r"\{(%r\d+), (%r\d+)\}\]"
    mask = r"(mov\.u16\s+%rs\d+), 3;"
    return [
        ("no load", "One of three loads is left out.", "sm90", {"Deadlock"}, drop(LOAD, 1)),
        (
            "load to the next eight rows",
            "Tokens arrive 1024 bytes too far.",
            "sm90",
            IN_USE,
            put(offset, r"\1, 17408;", -1),
        ),
        (
            "load not aligned",
            "Tokens arrive 16 bytes too far.",
            "sm90",
            {"MemoryFault"},
            put(offset, r"\1, 16400;", -1),
        ),
        (
            "rows for columns",
            "The coordinates of tokens are exchanged.",
            "sm90 ring",
            {"results"},
            put(coordinates, r"{\2, \1}]", 1),
        ),
        ("multicast to one", "Only block 0 gets the shared rows.", "sm90", {"Deadlock"}, put(mask, r"\1, 1;", 0)),
        ("multicast to the other", "Only block 1 gets the shared rows.", "sm90", {"Deadlock"}, put(mask, r"\1, 2;", 0)),
        ("tokens to one", "Only block 0 gets the shared tokens.", "sm90 pairs", {"Deadlock"}, put(mask, r"\1, 1;", 1)),
        ("multicast beyond", "A third block is meant.", "sm90", {"MemoryFault"}, put(mask, r"\1, 7;", 0)),
        (
            "no grid wait",
            "Rows are read before they are written.",
            "sm90 whole",
            {"PoisonError"},
            drop(r"griddepcontrol\.wait"),
        ),
    ]


def products() -> list[tuple]:
    first = r"(setp\.ne\.b32 p, )(%r\d+), 0;"
    return [
        ("wait for too few", "Two groups may run on.", "sm90 ring", IN_USE, put(r"(wait_group\S*) 1;", r"\1 2;")),
        ("no wait in the loop", "A stage is released at once.", "sm90 ring", IN_USE, drop(r"wgmma\.wait_group\S* 1")),
        (
            "no last wait",
            "Accumulators are read in flight.",
            "sm90",
            {"InFlightError"},
            drop(r"wgmma\.wait_group\S* 0"),
        ),
        ("no fence", "Nothing orders accumulators.", "sm90", {"InFlightError"}, drop(r"wgmma\.fence")),
        ("no commit", "Products are in no group.", "sm90", {"InFlightError"}, drop(r"wgmma\.commit_group")),
        (
            "add to nothing",
            "The first product adds.",
            "sm90",
            {"PoisonError"},
            put(first, r"setp.eq.b32 p, \2, \2;", 0),
        ),
        ("forgotten sum", "A product overwrites.", "sm90", {"results"}, put(first, r"setp.ne.b32 p, \2, \2;", 1)),
        (
            "stride",
            "2048 bytes for eight rows.",
            "sm90",
            {"InFlightError"},
            put(str(DESCRIPTOR), str(DESCRIPTOR + (64 << 32))),
        ),
        (
            "no swizzle",
            "Operands are read unswizzled.",
            "sm90",
            {"results"},
            put(str(DESCRIPTOR), str(DESCRIPTOR - (1 << 62))),
        ),
        (
            "start address kept",
            "A's second 16 columns are the first ones.",
            "sm90",
            {"results"},
            put(r"(or\.b32\s+%r\d+, %r\d+), 32;", r"\1, 0;"),
        ),
    ]


def masks() -> list[tuple]:
    edge = r"or\.pred\s+(%p\d+), (%p\d+), (%p\d+);"
    return [
        (
            "too many registers",
            "Consumers want 240 registers.",
            "sm90",
            {"Deadlock"},
            put(r"(setmaxnreg\.inc\S*) 232;", r"\1 240;"),
        ),
        ("no registers given back", "The producer keeps its own.", "sm90", {"Deadlock"}, drop(r"setmaxnreg\.dec")),
        ("no mask of rows", "Rows behind n are written.", "sm90", {"MemoryFault"}, put(edge, r"mov.pred \1, \2;", -1)),
        (
            "no mask of tiles",
            "Tiles behind the last.",
            "sm90",
            {"MemoryFault", "RaceError"},
            put(edge, r"mov.pred \1, \3;", -1),
        ),
    ]


def launches() -> list[tuple]:
    return [
        ("too little shared memory", "The last stage does not fit.", "sm90 ring", {"MemoryFault"}, with_shared(1024)),
        ("map without swizzle", "Tokens arrive unswizzled.", "sm90", {"results"}, with_map(1, swizzle=0)),
        ("smaller box", "A load brings half of the tokens.", "sm90", {"Deadlock"}, with_map(1, box=(64, 64))),
    ]


KERNEL = "nearest_scan_sm90_kernel"
FAULTS = [
    Fault(name, says, on, KERNEL, expected, edit=edit)
    for name, says, on, expected, edit in [*barriers(), *counts(), *copies(), *products(), *masks()]
] + [Fault(name, says, on, KERNEL, expected, launch=launch) for name, says, on, expected, launch in launches()]
