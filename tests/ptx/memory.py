"""Memory: storages of bytes, each byte with a state, and the address space of a device that consists of them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from .errors import InFlightError, MemoryFault, RaceError

# States of a byte; 0 is a value that was written.
POISON = 1  # never written, or written with something undefined
IN_FLIGHT = 2  # an asynchronous copy writes it
UNFENCED = 4  # written by an ordinary store that no fence.proxy.async has shown to the asynchronous proxy
BARRIER = 8  # part of an mbarrier
UNSEEN = {1: 0x01, 2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}  # a state in each byte of a word
DTYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
GARBAGE = 0xA5  # what poisoned bytes hold
WORDS = {POISON: "was never written", IN_FLIGHT: "is in flight: an asynchronous copy writes it"}
WORDS |= {BARRIER: "is part of an mbarrier"}


def said(state: int) -> str:
    """The states of a byte in words."""
    return ", ".join(words for bit, words in WORDS.items() if state & bit) or "is valid"


class Storage:
    """`size` bytes from `base` on: an allocation, the shared memory of a block, the parameters of a launch."""

    def __init__(self, name: str, base: int, size: int, poisoned: bool = True, data: np.ndarray | None = None) -> None:
        self.name, self.base, self.size = name, base, size
        padded = -(-size // 16) * 16
        self.data = np.full(padded, GARBAGE, np.uint8)
        if data is not None:
            self.data[:size] = data.view(np.uint8).reshape(-1)
        self.state = np.full(padded, POISON if poisoned else 0, np.uint8)
        self.views = {width: self.data.view(dtype) for width, dtype in DTYPES.items()}
        self.states = {width: self.state.view(dtype) for width, dtype in DTYPES.items()}
        self.writable = True
        self.trace = None  # who accessed it, for the search for races
        self.keeps_poison = False  # whether something undefined may be stored

    @property
    def end(self) -> int:
        return self.base + self.size

    def places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Offsets of accesses of `size` bytes (a power of two) at the addresses; a MemoryFault if one is outside."""
        at = addresses.astype(np.int64) - self.base
        low, high = int(at.min()), int(at.max())
        if low < 0 or high + size > self.size:
            wrong = low if low < 0 else high
            raise MemoryFault(f"{size} bytes at {self.base + wrong:#x} are not in {self}")
        if (at & (size - 1)).any():
            raise MemoryFault(
                f"an access of {size} bytes at {self.base + int(at[(at & (size - 1)) != 0][0]):#x} is not aligned"
            )
        return at

    def load(self, addresses: np.ndarray, width: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Values of `count` elements of `width` bytes at each address, and which are poison (None: none).

        Raises InFlightError where the bytes may not be read now.
        """
        at = self.places(addresses, width * count) // width
        view, states = self.views[width], self.states[width]
        values = [view[at + i] for i in range(count)]
        found = [states[at + i] for i in range(count)]
        if not any(one.any() for one in found):
            return values, None
        poison = UNSEEN[width] * POISON
        forbidden = UNSEEN[width] * (IN_FLIGHT | BARRIER)
        for one in found:
            if (one & one.dtype.type(forbidden)).any():
                lane = int(np.flatnonzero(one & one.dtype.type(forbidden))[0])
                state = int(np.bitwise_or.reduce(one[lane : lane + 1].view(np.uint8)))
                raise InFlightError(f"it reads {int(addresses[lane]):#x} in {self}, which {said(state)}")
        return values, [(one & one.dtype.type(poison)) != 0 for one in found]

    def store(
        self, addresses: np.ndarray, width: int, values: list[np.ndarray], states: list[np.ndarray | int]
    ) -> None:
        """Writes an element of `width` bytes of each array at each address; states: of each written byte."""
        at = self.places(addresses, width * len(values)) // width
        if not self.writable:
            raise MemoryFault(f"it writes to {self}")
        view, kept = self.views[width], self.states[width]
        for i, (value, state) in enumerate(zip(values, states, strict=True)):
            before = kept[at + i]
            busy = before.dtype.type(UNSEEN[width] * (IN_FLIGHT | BARRIER))
            if before.any() and (before & busy).any():
                lane = int(np.flatnonzero(before & busy)[0])
                worst = int(np.bitwise_or.reduce(before[lane : lane + 1].view(np.uint8)))
                raise InFlightError(f"it writes {int(addresses[lane]):#x} in {self}, which {said(worst)}")
            view[at + i] = value
            kept[at + i] = state
            if (view[at + i] != value).any():
                lane = int(np.flatnonzero(view[at + i] != value)[0])
                raise RaceError(f"lanes of a warp store different values at {int(addresses[lane]):#x} in {self}")

    def __str__(self) -> str:
        return f"{self.name} ({self.size} bytes from {self.base:#x})"


class AddressSpace:
    """The global memory of a device: allocations that do not overlap."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.bases: list[int] = []

    def add(self, storage: Storage) -> Storage:
        at = bisect_right(self.bases, storage.base)
        for other in self.storages[max(0, at - 1) : at + 1]:
            if storage.base < other.end and other.base < storage.end:
                raise MemoryFault(f"{storage} overlaps {other}")
        self.bases.insert(at, storage.base)
        self.storages.insert(at, storage)
        return storage

    def find(self, address: int) -> Storage:
        at = bisect_right(self.bases, address) - 1
        if at < 0 or address >= self.storages[at].end:
            near = f"; the nearest below it is {self.storages[at]}" if at >= 0 else ""
            raise MemoryFault(f"{address:#x} is in no allocation{near}")
        return self.storages[at]

    def parts(self, addresses: np.ndarray) -> list[tuple[Storage, np.ndarray | None]]:
        """The storages that the addresses lie in, each with the lanes (bool) that it holds; None: all of them."""
        first = self.find(int(addresses[0]))
        inside = (addresses >= first.base) & (addresses < first.end)
        if inside.all():
            return [(first, None)]
        found, left = [(first, inside)], ~inside
        while left.any():
            one = self.find(int(addresses[int(np.flatnonzero(left)[0])]))
            inside = left & (addresses >= one.base) & (addresses < one.end)
            found.append((one, inside))
            left &= ~inside
        return found
