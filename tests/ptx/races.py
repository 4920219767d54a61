"""Accesses of shared memory that nothing orders: found from vector clocks, whatever the schedule was.

A warp counts its releases: arrivals at barriers. It knows of every other warp how many it has acquired, by waiting at
the same barrier. An access is ordered behind another one if its warp knows the count at which that one was made. A bulk
copy is ordered behind the end of the phase of the mbarrier that counted its bytes.
"""

from __future__ import annotations

import numpy as np

from .errors import InFlightError, RaceError
from .shared import Mbarrier, SharedMemory

NEVER = np.iinfo(np.int32).max  # a write that no one may see yet
MOST_BARRIERS = 256  # mbarriers of a cluster


class Races:
    """Of the warps of one cluster. `warp.rank` numbers them."""

    def __init__(self, warps: int, names: list[str]) -> None:
        self.warps, self.names = warps, names
        self.clocks = np.zeros((warps, warps + MOST_BARRIERS), np.int32)
        self.clocks[:, :warps][np.diag_indices(warps)] = 1
        self.numbers: dict[Mbarrier, int] = {}  # its column

    # Synchronisation

    def release(self, w, barrier) -> None:
        mine, w.block.device.expired = self.clocks[w.rank], 0
        before = getattr(barrier, "arriving", None)
        barrier.arriving = mine.copy() if before is None else np.maximum(before, mine)
        mine[w.rank] += 1

    @staticmethod
    def pass_on(barrier) -> None:
        """All have arrived: those who wait know now what the arriving ones knew."""
        barrier.known = getattr(barrier, "arriving", None)

    def acquire(self, w, barrier) -> None:
        known = barrier.known if hasattr(barrier, "known") else getattr(barrier, "arriving", None)
        if known is not None:
            np.maximum(self.clocks[w.rank], known, out=self.clocks[w.rank])
        if isinstance(barrier, Mbarrier):
            self.clocks[w.rank, self.column(barrier)] = barrier.phase

    def column(self, barrier: Mbarrier) -> int:
        number = self.numbers.setdefault(barrier, len(self.numbers))
        return self.warps + number % MOST_BARRIERS

    # Accesses

    def seen(self, w, shared: SharedMemory, offsets: np.ndarray, write: bool, strong: bool = False) -> None:
        """A warp reads or writes bytes at offsets (of any shape). Strong accesses, such as atomics, do not race."""
        trace, now = shared.trace, self.clocks[w.rank, w.rank]
        self.ordered_behind_writes(w, shared, offsets, strong)
        if write:
            self.ordered_behind_reads(w, shared, offsets, strong)
        if strong:
            (trace.strong_written if write else trace.strong_read)[w.rank][offsets] = now
        elif write:
            trace.writer[offsets], trace.written[offsets] = w.rank, now
        else:
            trace.read[w.rank][offsets] = now

    def flag(self, w, shared: SharedMemory, offsets: np.ndarray, sets: bool) -> None:
        """A warp sets flags (st.release, st.volatile) or reads them (ld.acquire, ld.volatile): that orders warps."""
        for at in {int(one) for one in offsets}:
            one = shared.trace.flags.setdefault(at, Flag())
            (self.release if sets else self.acquire)(w, one)

    def reads(self, w, shared: SharedMemory, chunks: np.ndarray, width: int) -> None:
        """A warp's product has read chunks of `width` bytes."""
        self.seen(w, shared, chunks[..., None] + np.arange(width), False)

    def overwrites(self, w, shared: SharedMemory, offsets: np.ndarray) -> None:
        """A warp begins an asynchronous copy to these bytes; no one may read them before `publish` or `deliver`."""
        self.ordered_behind_writes(w, shared, offsets)
        self.ordered_behind_reads(w, shared, offsets)
        shared.trace.writer[offsets] = w.rank
        shared.trace.written[offsets] = NEVER

    def publish(self, w, shared: SharedMemory, offsets: np.ndarray) -> None:
        """A warp has waited for its copies to these bytes."""
        shared.trace.writer[offsets] = w.rank
        shared.trace.written[offsets] = self.clocks[w.rank, w.rank]

    def deliver(self, shared: SharedMemory, offsets: np.ndarray, barrier: Mbarrier) -> None:
        """A bulk copy wrote these bytes; they may be read by who saw the current phase end."""
        shared.trace.writer[offsets] = self.column(barrier)
        shared.trace.written[offsets] = barrier.phase + 1

    def ordered_behind_writes(self, w, shared: SharedMemory, offsets: np.ndarray, strong: bool = False) -> None:
        trace = shared.trace
        writer = trace.writer[offsets]
        late = trace.written[offsets] > self.clocks[w.rank][writer]  # its own only if it began a copy
        if late.any():
            at = int(offsets.reshape(-1)[np.flatnonzero(late.reshape(-1))[0]])
            if trace.writer[at] == w.rank:
                raise InFlightError(f"{shared.base + at:#x} in {shared} is written by a copy that was not waited for")
            raise RaceError(
                f"nothing orders this access of {shared.base + at:#x} in {shared} behind the write by "
                f"{self.name(int(trace.writer[at]))}"
            )
        if not strong:
            self.ordered_behind(w, shared, offsets, trace.strong_written, "access", "atomic write")

    def ordered_behind_reads(self, w, shared: SharedMemory, offsets: np.ndarray, strong: bool = False) -> None:
        self.ordered_behind(w, shared, offsets, shared.trace.read, "write", "read")
        if not strong:
            self.ordered_behind(w, shared, offsets, shared.trace.strong_read, "write", "read")

    def ordered_behind(self, w, shared: SharedMemory, offsets, earlier: dict, what: str, behind: str) -> None:
        for rank, counts in earlier.items():
            if rank == w.rank:
                continue
            late = counts[offsets] > self.clocks[w.rank, rank]
            if late.any():
                at = int(offsets.reshape(-1)[np.flatnonzero(late.reshape(-1))[0]])
                place, other = f"{shared.base + at:#x} in {shared}", self.name(rank)
                raise RaceError(f"nothing orders this {what} of {place} behind the {behind} by {other}")

    def name(self, rank: int) -> str:
        return self.names[rank] if rank < self.warps else "a bulk copy, whose mbarrier was not waited for"


class Trace:
    """Of each byte of a shared memory: who wrote it last, at which count, and the counts of each warp's last
    read, last strong read and last strong write."""

    def __init__(self, size: int) -> None:
        self.writer, self.written = np.zeros(size, np.int16), np.zeros(size, np.int32)
        self.read, self.strong_read, self.strong_written = (_Counts(size) for _ in range(3))
        self.flags: dict[int, Flag] = {}


class Flag:
    """A place in shared memory by which warps order themselves."""


class _Counts(dict):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __missing__(self, rank: int) -> np.ndarray:
        self[rank] = np.zeros(self.size, np.int32)
        return self[rank]
