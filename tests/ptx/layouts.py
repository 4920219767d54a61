"""Where the matrix instructions keep their elements: in the registers of a warp and in shared memory.

Everything here follows the figures and formulas of the PTX ISA manual, in its terms: lane l of a warp is thread l % 4
of group l // 4. A layout is a pair of int64 arrays of the same shape, the row and the column of what a lane holds.
The arrays are shared between calls, so they cannot be written to.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

Positions = tuple[np.ndarray, np.ndarray]

LANES = np.arange(32)
GROUP, THREAD = LANES[:, None] // 4, LANES[:, None] % 4
CHUNK = 16  # bytes: the unit in which shared memory holds operands

_RESERVED = 3 << 14 | 3 << 30 | 7 << 46 | 1023 << 52
_SWIZZLES = (0, 128, 64, 32)  # bytes, by the two highest bits of a descriptor


def _frozen(rows: np.ndarray, columns: np.ndarray) -> Positions:
    pair = tuple(np.array(part) for part in np.broadcast_arrays(rows, columns))
    for part in pair:
        part.flags.writeable = False
    return pair


@cache
def mma_a(k: int = 16) -> Positions:
    """Matrix A (16 x k) of mma.m16n8k16 or m16n8k8 with 16-bit elements -> rows, columns (32, k // 2).

    Elements 2 r and 2 r + 1 lie in register r, the first in the low half.
    """
    _check_depth(k)
    i = np.arange(k // 2)
    return _frozen(GROUP + 8 * (i // 2 % 2), 2 * THREAD + i % 2 + 8 * (i // 4))


@cache
def mma_b(k: int = 16) -> Positions:
    """Matrix B (k x 8) of mma.m16n8k16 or m16n8k8 with 16-bit elements -> rows (along K), columns (32, k // 4)."""
    _check_depth(k)
    i = np.arange(k // 4)
    return _frozen(2 * THREAD + i % 2 + 8 * (i // 2), GROUP)


def mma_c() -> Positions:
    """The accumulators C and D (16 x 8) of mma.m16n8 in 32 bits -> rows, columns (32, 4)."""
    return wgmma_d(8)


def wgmma_a() -> Positions:
    """Matrix A of wgmma.m64nNk16 from registers, the 16 x 16 part of one warp -> rows, columns (32, 8).

    Row r of warp w of the warp group is row 16 w + r of A.
    """
    return mma_a(16)


@cache
def wgmma_d(n: int) -> Positions:
    """The accumulators D of wgmma.m64nNk16 in 32 bits, the 16 x n part of one warp -> rows, columns (32, n // 2).

    Row r of warp w of the warp group is row 16 w + r of D.
    """
    if n not in range(8, 257, 8):
        raise ValueError(f"N of an instruction is a multiple of 8 from 8 to 256, but it is {n}.")
    i = np.arange(n // 2)
    return _frozen(GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * THREAD + i % 2)


def _check_depth(k: int) -> None:
    if k not in (8, 16):
        raise ValueError(f"mma.m16n8 with 16-bit elements has K 8 or 16, but K is {k}.")


def matrix_8x8(lane: int | np.ndarray = LANES, transposed: bool = False) -> Positions:
    """The two elements that lanes hold of an 8 x 8 matrix of 16 bits, in ldmatrix and in stmatrix.

    lane, of any shape (...) -> rows, columns (..., 2): the row as its address was given, and the element in it. The
    first element lies in the low half of the register. `transposed` is .trans.
    """
    lane = np.asarray(lane)[..., None]
    along, across = 2 * (lane % 4) + np.arange(2), lane // 4
    return _frozen(along, across) if transposed else _frozen(across, along)


def address_lanes(count: int) -> np.ndarray:
    """The lanes that give the addresses of the rows of ldmatrix and stmatrix .x1, .x2, .x4 -> int64 (count, 8)."""
    if count not in (1, 2, 4):
        raise ValueError(f"ldmatrix and stmatrix move 1, 2 or 4 matrices, but {count} were asked for.")
    return np.arange(8 * count).reshape(count, 8)


def swizzle(mode: int, address: int | np.ndarray) -> int | np.ndarray:
    """Permutes the 16-byte chunks of shared memory: addresses in bytes, of any integer type -> the same shape.

    mode is the width of the swizzle in bytes: 0 (none), 32, 64 or 128. The address bits from 4 on, one, two or three
    of them, are XORed with the bits from 7 on.
    """
    if mode not in _SWIZZLES:
        raise ValueError(f"A swizzle has a width of 0, 32, 64 or 128 bytes, but it is {mode}.")
    return address ^ (address >> 3 & mode - CHUNK) if mode else address


class Descriptor(NamedTuple):
    """A matrix descriptor of wgmma. Addresses and offsets are in bytes, and `swizzle` is its width in bytes, or 0."""

    start_address: int
    leading_byte_offset: int
    stride_byte_offset: int
    base_offset: int
    swizzle: int


def decode_descriptor(value: int) -> Descriptor:
    """Reads the 64 bits of a matrix descriptor of wgmma (sm_90a)."""
    value = int(value)
    if not 0 <= value < 1 << 64:
        raise ValueError(f"A matrix descriptor has 64 bits, but it is {value:#x}.")
    if value & _RESERVED:
        raise ValueError(
            f"Bits 14-15, 30-31, 46-48 and 52-61 of a wgmma matrix descriptor must be zero, but it is {value:#018x}."
        )
    start, leading, stride = ((value >> low & 0x3FFF) << 4 for low in (0, 16, 32))
    return Descriptor(start, leading, stride, value >> 49 & 7, _SWIZZLES[value >> 62])


def operand_addresses(descriptor: Descriptor, rows: int, k_bytes: int, transposed: bool = False) -> np.ndarray:
    """The addresses of the 16-byte chunks of a wgmma operand in shared memory, in bytes.

    rows is the operand's extent along M or N. k_bytes is the extent along K: 32 bytes in an instruction of 16-bit
    elements. -> int64 (rows, k_bytes // 16), each chunk being consecutive elements along K. If `transposed` (MN-major,
    16-bit elements) -> int64 (k_bytes // 2, rows // 8), each chunk being 8 consecutive rows at one place along K.
    """
    if descriptor.base_offset:
        raise NotImplementedError(
            f"Only base offset 0 is known here, but the descriptor's is {descriptor.base_offset}."
        )
    if rows % 8 or k_bytes % CHUNK:
        raise ValueError(f"An operand has rows in eights and chunks of 16 bytes, but it is {rows} by {k_bytes} bytes.")
    linear = _mn_major(descriptor, rows, k_bytes) if transposed else _k_major(descriptor, rows, k_bytes)
    return swizzle(descriptor.swizzle, descriptor.start_address + linear)


def _k_major(descriptor: Descriptor, rows: int, k_bytes: int) -> np.ndarray:
    """Atoms of 8 rows, as wide as the swizzle. The leading byte offset counts only where nothing is swizzled."""
    if k_bytes > (width := descriptor.swizzle) > 0:
        raise ValueError(f"K-major rows of {k_bytes} bytes do not fit into a swizzle of {width} bytes.")
    row, chunk = np.arange(rows)[:, None], np.arange(k_bytes // CHUNK)
    pitch, step = (width, CHUNK) if width else (CHUNK, descriptor.leading_byte_offset)
    return row // 8 * descriptor.stride_byte_offset + row % 8 * pitch + chunk * step


def _mn_major(descriptor: Descriptor, rows: int, k_bytes: int) -> np.ndarray:
    """Atoms of 8 places along K, as wide along M or N as the swizzle. Without one, the two offsets change roles."""
    k, chunk = np.arange(k_bytes // 2)[:, None], np.arange(rows // 8)
    leading, stride = descriptor.leading_byte_offset, descriptor.stride_byte_offset
    if not descriptor.swizzle:
        return k // 8 * leading + k % 8 * CHUNK + chunk * stride
    wide = descriptor.swizzle // CHUNK
    return k // 8 * stride + k % 8 * descriptor.swizzle + chunk // wide * leading + chunk % wide * CHUNK
