"""Sums and conversions of floats with every rounding of PTX, and with rounding to odd.

Rounding to odd takes the neighbour with an odd significand wherever the value is inexact. What is rounded to odd with
two more bits, and then to nearest, is as if rounded once.
"""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

HALFWAY = np.uint64(1 << 28)
BELOW = np.uint64((1 << 29) - 1)
NORMAL32 = 2.0**-126
SIGNED_BITS = {np.dtype(np.float16): np.int16, np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}

_fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
_fma.argtypes = [ctypes.c_double] * 3
_fma.restype = ctypes.c_double


def redirect(nearest, error, mode: str):
    """A value rounded to nearest, rounded as the mode says instead.

    nearest, error: floats of one shape; the exact value is their sum, and error is zero, or NaN, where nothing is to
    be done. mode: "rn" (to nearest), "rz" (towards zero), "rm" (down), "rp" (up) or "odd".
    """
    if mode == "rn":
        return nearest
    if mode == "odd":
        return _to_odd(nearest, error)
    integer = SIGNED_BITS[nearest.dtype]
    outward = (error < 0) == np.signbit(nearest)  # whether the exact value is larger in size
    if mode == "rz":
        change = (np.abs(error) > 0) & ~outward
    else:
        change = error < 0 if mode == "rm" else error > 0
    step = np.where(change, np.where(outward, integer(1), integer(-1)), integer(0))
    return (nearest.view(integer) + step).view(nearest.dtype)


def _to_odd(nearest, error):
    """Towards zero, and then the last bit set, wherever there is an error."""
    integer = SIGNED_BITS[nearest.dtype]
    bits = nearest.view(integer)
    sign = error.astype(nearest.dtype).view(integer)
    inward = (bits ^ sign) >> integer(8 * bits.itemsize - 1)  # -1 where the signs differ, else 0
    return np.where(np.abs(error) > 0, (bits + inward) | integer(1), bits).view(nearest.dtype)


def two_sum(x, y):
    """The sum of two floats to nearest, and its exact error."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def add(x, y, mode: str):
    """The sum of two float64 as the mode says."""
    return redirect(*two_sum(x, y), mode)


def narrow(x, target: type, mode: str = "rn"):
    """A float64 as a float16 or float32. A NaN remains one."""
    nearest = x.astype(target)
    return nearest if mode == "rn" else redirect(nearest, x - nearest, mode)


def fma32(a, b, c):
    """a * b + c of float32, rounded once."""
    product = a.astype(np.float64) * b  # exact
    total = product + c
    risky = ((total.view(np.uint64) & BELOW) == HALFWAY) | ((np.abs(total) < NORMAL32) & (total != 0))
    if np.count_nonzero(risky):
        total = add(product, c.astype(np.float64), "odd")
    return total.astype(np.float32)


def fma64(a, b, c):
    """a * b + c of float64, rounded once: the C library's fma, lane by lane, which takes less time than splitting."""
    lanes = np.broadcast_arrays(np.atleast_1d(a), b, c)
    return np.array(list(map(_fma, *(x.tolist() for x in lanes))))
