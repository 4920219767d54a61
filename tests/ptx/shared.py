"""The shared memory of a block: a storage with mbarriers in it, and with traces of who wrote what and when."""

from __future__ import annotations

import numpy as np

from .errors import BarrierError, InFlightError
from .memory import BARRIER, IN_FLIGHT, POISON, UNFENCED, Storage, said

CHUNK = 16  # bytes that share a stamp
NOT_FENCED = "was written by an ordinary store, and no fence.proxy.async followed"


class SharedMemory(Storage):
    def __init__(self, name: str, base: int, size: int) -> None:
        super().__init__(name, base, size)
        self.writers = np.zeros(len(self.data), np.uint8)  # of bytes in state UNFENCED: the warp, from 1 on
        self.stamps = np.zeros(len(self.data) // CHUNK + 1, np.int64)  # when a chunk was last written
        self.time = 0
        self.barriers: dict[int, Mbarrier] = {}  # by address
        self.visitors: dict[int, int] = {}  # warps of other blocks, and when they last used it
        self.alive = self.keeps_poison = True
        self.cluster = None

    def stamp(self, offsets: np.ndarray) -> None:
        self.time += 1
        self.stamps[offsets // CHUNK] = self.time

    def written(self, addresses: np.ndarray, size: int, writer: int) -> None:
        """An ordinary store of a warp, so that an asynchronous operation can tell whether it was fenced."""
        offsets = (addresses.astype(np.int64) - self.base)[:, None] + np.arange(size)
        self.writers[offsets] = writer
        self.stamp(offsets)

    def fence(self, writer: int) -> None:
        """fence.proxy.async: what the warp wrote may be read by asynchronous operations."""
        mine = (self.writers == writer) & (self.state & UNFENCED != 0)
        self.state[mine] &= np.uint8(~UNFENCED & 0xFF)

    def claim(self, offsets: np.ndarray) -> None:
        """An asynchronous copy begins to write these bytes."""
        before = self.state[offsets]
        busy = before & (IN_FLIGHT | BARRIER)
        if busy.any():
            at = int(offsets.reshape(-1)[np.flatnonzero(busy.reshape(-1))[0]])
            raise InFlightError(f"it copies to {self.base + at:#x} in {self}, which {said(int(self.state[at]))}")
        self.state[offsets] = IN_FLIGHT
        self.stamp(offsets)

    def fenced(self, offsets: np.ndarray) -> None:
        """A bulk copy may only overwrite what an ordinary store wrote if a fence.proxy.async followed the store."""
        unfenced = self.state[offsets] & UNFENCED != 0
        if unfenced.any():
            at = int(offsets[unfenced][0])
            raise InFlightError(f"it copies to {self.base + at:#x} in {self}, which {NOT_FENCED}")

    def arrive(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """Bytes of an asynchronous copy arrive."""
        self.data[offsets] = values
        self.state[offsets] = 0
        self.stamp(offsets)

    def delivered(self, offsets: np.ndarray, barrier: Mbarrier) -> None:
        """A bulk copy wrote these bytes, and the barrier counts them."""
        self.cluster.races.deliver(self, offsets, barrier)

    def readable(self, offsets: np.ndarray, width: int, what: str) -> None:
        """Whether an asynchronous operation may read `width` bytes at each of these offsets (multiples of it)."""
        states = self.state.reshape(-1, width)[offsets // width]
        if not states.any():
            return
        wrong = np.flatnonzero(states.any(-1).reshape(-1))[0]
        at = int(offsets.reshape(-1)[wrong])
        state = int(np.bitwise_or.reduce(states.reshape(-1, width)[wrong]))
        words = NOT_FENCED if state == UNFENCED else said(state)
        raise InFlightError(f"{what} reads {self.base + at:#x} in {self}, which {words}")

    def barrier(self, address: int, what: str) -> Mbarrier:
        found = self.barriers.get(address)
        if found is None:
            raise BarrierError(f"{what}: there is no mbarrier at {address:#x} in {self}")
        return found

    def add_barrier(self, address: int, count: int) -> Mbarrier:
        if address in self.barriers:
            raise BarrierError(f"there is an mbarrier at {address:#x} in {self} already, and it was not invalidated")
        offset = int(self.places(np.array([address]), 8)[0])
        if (self.state[offset : offset + 8] & IN_FLIGHT).any():
            raise InFlightError(f"the mbarrier at {address:#x} in {self} lies where an asynchronous copy writes")
        if not 1 <= count < 1 << 20:
            raise BarrierError(f"an mbarrier that counts {count} arrivals")
        self.state[offset : offset + 8] = BARRIER
        self.barriers[address] = Mbarrier(address, count)
        return self.barriers[address]

    def drop_barrier(self, address: int) -> None:
        barrier = self.barrier(address, "mbarrier.inval")
        if barrier.bytes:
            raise BarrierError(f"the mbarrier at {address:#x} is invalidated while it waits for {barrier.bytes} bytes")
        del self.barriers[address]
        offset = address - self.base
        self.state[offset : offset + 8] = POISON


class Mbarrier:
    """Counts arrivals and bytes; when nothing is missing of either, a phase ends and the next one begins."""

    def __init__(self, address: int, count: int) -> None:
        self.address, self.count = address, count
        self.missing, self.bytes, self.phase = count, 0, 0

    def expect(self, size: int) -> None:
        self.bytes += size
        if abs(self.bytes) >= 1 << 20:
            raise BarrierError(f"{self} cannot count so many bytes")
        self.step()

    def arrive(self, count: int = 1) -> None:
        if count > self.missing:
            raise BarrierError(f"{self} gets more arrivals than it counts in a phase ({self.count})")
        self.missing -= count
        self.step()

    def arrive_expecting(self, size: int) -> None:
        self.bytes += size  # before the arrival, so that the phase does not end between the two
        self.arrive()

    def step(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.phase += 1
            self.missing = self.count
            self.known = getattr(self, "arriving", None)

    def ended(self, parity: int) -> bool:
        """Whether the phase of this parity is over: the one before the current one has it."""
        return self.phase & 1 != parity & 1

    def beyond(self, phase: int) -> bool:
        """Whether this phase is over; it must be the current one or the one before."""
        if phase not in (self.phase, self.phase - 1):
            raise BarrierError(f"{self} is asked for phase {phase}")
        return self.phase != phase

    def __str__(self) -> str:
        missing = f"{self.missing} arrivals and {self.bytes} bytes missing"
        return f"the mbarrier at {self.address:#x} (phase {self.phase}, {missing})"
