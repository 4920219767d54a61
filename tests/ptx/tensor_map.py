"""A tensor map as a record, and as the 128 bytes that a kernel receives.

The layout of a real tensor map is not documented. Ours has these little-endian fields: the magic number (8 bytes), the
address (8), rank, element type, bytes of an element, interleave, swizzle, fill with NaN (1 each), two zero bytes, five
sizes (8 each), four strides (8 each), five sides of the box (2 each), five element strides (1 each), zeros, and in the
last four bytes the CRC-32 of everything before. tests/cuda_runtime/tensor_map.cpp writes the same layout."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MAGIC = b"TENSMAP1"
BYTES = 128
_LAYOUT = struct.Struct("<8sQ6B2x5Q4Q5H5B13x")
_RANK = 5

# The number of a type is its place in this list, as in CUtensorMapDataType.
ELEMENT_TYPES = (
    "uint8",
    "uint16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "float32_ftz",
    "tfloat32",
    "tfloat32_ftz",
)
ELEMENT_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)
SWIZZLES = (0, 32, 64, 128)  # bytes; the place is the number in CUtensorMapSwizzle
INTERLEAVES = (0, 16, 32)  # bytes; the place is the number in CUtensorMapInterleave


@dataclass(frozen=True)
class TensorMap:
    """What cuTensorMapEncodeTiled is told. Dimensions go from the innermost one outwards; sizes and the box count
    elements, strides count bytes and leave the innermost dimension out."""

    address: int
    element_bytes: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    swizzle: int  # bytes: one of SWIZZLES
    interleave: int  # bytes: one of INTERLEAVES
    fill_nan: bool
    element_type: str  # one of ELEMENT_TYPES

    @property
    def rank(self) -> int:
        return len(self.sizes)

    def check(self) -> TensorMap:
        """Raises ValueError for what the driver refuses; returns the map itself otherwise."""
        self._check_type()
        self._check_tensor()
        self._check_box()
        return self

    def _check_type(self) -> None:
        require(self.element_type in ELEMENT_TYPES, f"there is no element type {self.element_type!r}")
        right = ELEMENT_BYTES[ELEMENT_TYPES.index(self.element_type)]
        require(self.element_bytes == right, f"{self.element_type} has {right} bytes, not {self.element_bytes}")
        require(self.swizzle in SWIZZLES, f"the swizzle must be 0, 32, 64 or 128 bytes wide, not {self.swizzle}")
        require(self.interleave in INTERLEAVES, f"the interleave must be 0, 16 or 32 bytes, not {self.interleave}")
        require(self.interleave != 32 or self.swizzle == 32, "interleave of 32 bytes needs a swizzle of 32 bytes")
        floating = "float" in self.element_type
        require(not self.fill_nan or floating, f"{self.element_type} has no NaN to fill with")

    def _check_tensor(self) -> None:
        least, unit = (3 if self.interleave else 1), (32 if self.interleave == 32 else 16)
        require(least <= self.rank <= _RANK, f"the rank must be from {least} to {_RANK}, not {self.rank}")
        counts = (len(self.strides) + 1, len(self.box), len(self.element_strides))
        require(counts == (self.rank,) * 3, "strides, box and element strides must suit the rank")
        require(0 <= self.address < 1 << 64, "the address must have 64 bits")
        require(self.address % unit == 0, f"the address {self.address:#x} is not aligned to {unit} bytes")
        for size in self.sizes:
            require(1 <= size <= 1 << 32, f"a size must be from 1 to 2^32, not {size}")
        for stride in self.strides:
            require(stride % unit == 0, f"a stride must be a multiple of {unit} bytes, not {stride}")
            require(0 <= stride < 1 << 40, f"a stride must be below 2^40 bytes, not {stride}")

    def _check_box(self) -> None:
        for side in self.box:
            require(1 <= side <= 256, f"a side of the box must be from 1 to 256, not {side}")
        for stride in self.element_strides:
            require(1 <= stride <= 8, f"an element stride must be from 1 to 8, not {stride}")
        inner = self.box[0] * self.element_bytes
        if self.interleave == 0:
            require(inner % 16 == 0, f"the box's innermost side must be a multiple of 16 bytes, not {inner}")
            fits = self.swizzle == 0 or inner <= self.swizzle
            require(fits, f"the box's innermost side of {inner} bytes exceeds the swizzle of {self.swizzle}")

    def to_bytes(self) -> bytes:
        """Returns 128 bytes; a map that the driver refuses raises ValueError."""
        self.check()

        def padded(values: tuple[int, ...], count: int) -> tuple[int, ...]:
            return values + (0,) * (count - len(values))

        written = _LAYOUT.pack(
            MAGIC,
            self.address,
            self.rank,
            ELEMENT_TYPES.index(self.element_type),
            self.element_bytes,
            self.interleave,
            self.swizzle,
            self.fill_nan,
            *padded(self.sizes, _RANK),
            *padded(self.strides, _RANK - 1),
            *padded(self.box, _RANK),
            *padded(self.element_strides, _RANK),
        )
        return written + zlib.crc32(written).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> TensorMap:
        """Reads what to_bytes wrote; anything else raises ValueError."""
        data = bytes(data)
        require(len(data) == BYTES, f"a tensor map has {BYTES} bytes, not {len(data)}")
        require(data[: len(MAGIC)] == MAGIC, "these bytes are no tensor map: the magic number is missing")
        crc = int.from_bytes(data[-4:], "little")
        require(zlib.crc32(data[:-4]) == crc, "these bytes are no tensor map: the checksum differs")
        _, address, rank, kind, element_bytes, interleave, swizzle, fill_nan, *rest = _LAYOUT.unpack(data[:-4])
        require(kind < len(ELEMENT_TYPES), f"there is no element type number {kind}")
        sizes, strides, box, steps = rest[:5], rest[5:9], rest[9:14], rest[14:19]
        return cls(
            address=address,
            element_bytes=element_bytes,
            sizes=tuple(sizes[:rank]),
            strides=tuple(strides[: max(rank - 1, 0)]),
            box=tuple(box[:rank]),
            element_strides=tuple(steps[:rank]),
            swizzle=swizzle,
            interleave=interleave,
            fill_nan=bool(fill_nan),
            element_type=ELEMENT_TYPES[kind],
        ).check()


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
