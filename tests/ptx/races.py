"""Accesses of shared memory that nothing orders: found from vector clocks, whatever the schedule was.

A warp counts its releases: arrivals at barriers. It knows of every other warp how many it has acquired, by waiting at
the same barrier. An access is ordered behind another one if its warp knows the count at which that one was made. A bulk
copy is ordered behind the end of the phase of the mbarrier that counted its bytes. What products of a warp group read
is ordered before everything behind a wait for them, by any of the group's warps.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from .errors import InFlightError, RaceError, UnknownInstruction
from .memory import Storage
from .shared import Mbarrier, SharedMemory

NEVER = np.iinfo(np.int32).max  # a write that no one may see yet
SERIAL = 1 << 12  # warps of a cluster at most
MOST_COLUMNS = 256  # mbarriers and warp groups of a cluster


class Races:
    """Of the warps of one cluster. `warp.rank` numbers them; `serial`, from 1 on, numbers the clusters of a run."""

    def __init__(self, warps: int, names: list[str], serial: int) -> None:
        self.warps, self.names, self.serial = warps, names, serial
        self.clocks = np.zeros((warps, warps + MOST_COLUMNS), np.int32)
        self.clocks[:, :warps][np.diag_indices(warps)] = 1
        self.numbers: dict[Hashable, int] = {}  # an mbarrier or a warp group -> its column

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

    def visits(self, w, shared: SharedMemory) -> None:
        """A warp uses the shared memory of another block."""
        shared.visitors[w.rank] = int(self.clocks[w.rank, w.rank])

    def ordered_behind_visits(self, block, shared: SharedMemory) -> None:
        """A block ends: one of its warps must know of every visit to its shared memory."""
        for visitor, count in shared.visitors.items():
            if all(count > self.clocks[w.rank, visitor] for w in block.warps):
                what = f"nothing orders the end of block {block.name} behind the last use of its shared memory"
                raise RaceError(f"{what} by {self.names[visitor]}")

    def column(self, key: Hashable) -> int:
        """Of an mbarrier, or of a warp group's products."""
        number = self.numbers.setdefault(key, len(self.numbers))
        if number >= MOST_COLUMNS:
            raise UnknownInstruction(f"more than {MOST_COLUMNS} mbarriers and warp groups in a cluster")
        return self.warps + number

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

    def product_reads(self, w, shared: SharedMemory, chunks: np.ndarray, group: int) -> None:
        """A product of `group` (from 1 on) of a warp group has read chunks of 16 bytes."""
        shared.trace.read[self.team(w)][chunks[..., None] + np.arange(16)] = group

    def products_ended(self, w, groups: int) -> None:
        """A warp has waited for so many groups of products of its warp group, all four warps' rows of them."""
        team = self.team(w)
        self.clocks[w.rank, team] = max(self.clocks[w.rank, team], groups)

    def team(self, w) -> int:
        """The column of a warp group's products."""
        return self.column(("products", w.block.rank, w.index // 4))

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
        return self.names[rank] if rank < self.warps else "an asynchronous operation, which was not waited for"

    def seen_global(self, w, storage: Storage, offsets: np.ndarray, write: bool) -> None:
        """A warp reads or writes bytes of global memory. Only warps of one cluster are compared.

        Of the readers of a byte, the last one is known.
        """
        trace = storage.trace = storage.trace or GlobalTrace(len(storage.data))
        known, mine = self.clocks[w.rank], self.serial * SERIAL + w.rank
        earlier = [(trace.writer, trace.written, "write")] + ([(trace.reader, trace.read, "read")] if write else [])
        for who, when, what in earlier:
            other = who[offsets]
            late = (other // SERIAL == self.serial) & (other != mine)
            if late.any():
                late &= when[offsets] > known[other % SERIAL]
            if late.any():
                at = int(offsets.reshape(-1)[np.flatnonzero(late.reshape(-1))[0]])
                name = self.name(int(who[at]) % SERIAL)
                raise RaceError(
                    f"nothing orders this {'write' if write else 'read'} of {storage.base + at:#x} in {storage} "
                    f"behind the {what} by {name}"
                )
        who, when, _ = (trace.writer, trace.written, "") if write else (trace.reader, trace.read, "")
        who[offsets], when[offsets] = mine, known[w.rank]


class GlobalTrace:
    """Of each byte of an allocation: the last writer and the last reader, and their counts."""

    def __init__(self, size: int) -> None:
        self.writer, self.written = np.zeros(size, np.int64), np.zeros(size, np.int32)
        self.reader, self.read = np.zeros(size, np.int64), np.zeros(size, np.int32)


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
