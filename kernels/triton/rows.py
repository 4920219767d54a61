"""Loads rows of any float dtype and any strides as float64, scaled so that squares and products stay in range."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _power_of_two(exponent):
    """exponent int64, from -1022 to 1023 -> 2^exponent, float64."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def row_exponents(rows, valid, d, stride, SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Same as `rows.abs().amax(-1).frexp().exponent`, less 1; -1023 where a row is zero or subnormal.

    rows (SIZE,) pointers to rows of d elements, valid (SIZE,) -> (SIZE,) int64. The narrower dtypes are in range, so
    the result is 0 for them.
    """
    if rows.dtype.scalar.element_ty == tl.float64:
        largest = tl.full([SIZE, BLOCK_D], 0, tl.float64)
        for start in range(0, d, BLOCK_D):
            columns = start + tl.arange(0, BLOCK_D).to(tl.int64)
            mask = valid[:, None] & (columns < d)[None, :]
            largest = tl.maximum(
                largest, tl.abs(tl.load(rows[:, None] + columns[None, :] * stride, mask=mask, other=0.0))
            )
        # From the bits, because a logarithm is rounded.
        return (tl.max(largest, 1).to(tl.int64, bitcast=True) >> 52) - 1023
    else:
        return tl.full([SIZE], 0, tl.int64)


@triton.jit
def load_rows(rows, valid, start, d, stride, exponent, BLOCK_D: tl.constexpr):
    """Same as `rows[:, start : start + BLOCK_D].double() * 2.0**-exponent`, 0 beyond d and where not valid.

    rows (SIZE,) pointers, valid (SIZE,), exponent (SIZE,) as from `row_exponents` -> (SIZE, BLOCK_D) float64.
    """
    columns = start + tl.arange(0, BLOCK_D).to(tl.int64)
    mask = valid[:, None] & (columns < d)[None, :]
    values = tl.load(rows[:, None] + columns[None, :] * stride, mask=mask, other=0.0)
    if rows.dtype.scalar.element_ty == tl.float64:
        half = exponent >> 1  # in two steps: 2^1023 is not small enough for 2^-1074, nor 2^-1024 a normal float64
        return values * _power_of_two(-half)[:, None] * _power_of_two(half - exponent)[:, None]
    else:
        return values.to(tl.float32).to(tl.float64)
