"""Cosines as unevaluated sums hi + lo of two float64 (Dekker 1971): `pez_fast._shared.arithmetic` in Triton.

The compiler must not contract these operations to fused multiply-adds: launch with enable_fp_fusion=False.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pez_fast._triton.rows import load_rows, row_exponents


@triton.jit
def _two_sum(a, b):
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@triton.jit
def _split(x):
    t = x * 134217729.0  # 2^27 + 1
    high = t - (t - x)
    return high, x - high


@triton.jit
def _two_product(a, b):
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


@triton.jit
def _add(x_hi, x_lo, y_hi, y_lo):
    s, e = _two_sum(x_hi, y_hi)
    return _two_sum(s, e + (x_lo + y_lo))


@triton.jit
def _multiply(x_hi, x_lo, y_hi, y_lo):
    p, e = _two_product(x_hi, y_hi)
    return _two_sum(p, e + (x_hi * y_lo + x_lo * y_hi))


@triton.jit
def _pairwise_sum(hi, lo, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, LEVELS: tl.constexpr):
    """hi, lo (SIZE, BLOCK_D) -> hi, lo (SIZE,): the sum of each row, added pairwise; BLOCK_D = 2^LEVELS."""
    for level in tl.static_range(LEVELS):
        first_hi, second_hi = tl.split(tl.reshape(hi, [SIZE, BLOCK_D >> (level + 1), 2]))
        first_lo, second_lo = tl.split(tl.reshape(lo, [SIZE, BLOCK_D >> (level + 1), 2]))
        hi, lo = _add(first_hi, first_lo, second_hi, second_lo)
    return tl.reshape(hi, [SIZE]), tl.reshape(lo, [SIZE])


@triton.jit
def double_cosine(x, x_stride, rows, valid, stride, d, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, LEVELS: tl.constexpr):
    """Cosines of one row with SIZE others, beyond float64.

    x (1,) pointer to a row, rows (SIZE,) pointers, valid (SIZE,) -> hi, lo, size (SIZE,) float64: the cosine hi + lo, 0
    where a row is zero, and size = sum |q_k e_k| / (|q| |e|); the cosine's error is proportional to size.
    """
    always = tl.full([1], 1, tl.int1)
    x_exponent = row_exponents(x, always, d, x_stride, 1, BLOCK_D)
    exponent = row_exponents(rows, valid, d, stride, SIZE, BLOCK_D)
    dot_hi = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    dot_lo = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    e_hi = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    e_lo = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    q_hi = tl.full([1, BLOCK_D], 0, tl.float64)
    q_lo = tl.full([1, BLOCK_D], 0, tl.float64)
    size = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    for start in range(0, d, BLOCK_D):
        q = load_rows(x, always, start, d, x_stride, x_exponent, BLOCK_D)  # (1, BLOCK_D)
        e = load_rows(rows, valid, start, d, stride, exponent, BLOCK_D)  # (SIZE, BLOCK_D)
        hi, lo = _two_product(e, q)
        size += tl.abs(hi)
        dot_hi, dot_lo = _add(dot_hi, dot_lo, hi, lo)
        hi, lo = _two_product(e, e)
        e_hi, e_lo = _add(e_hi, e_lo, hi, lo)
        hi, lo = _two_product(q, q)
        q_hi, q_lo = _add(q_hi, q_lo, hi, lo)
    dot_hi, dot_lo = _pairwise_sum(dot_hi, dot_lo, SIZE, BLOCK_D, LEVELS)
    e_hi, e_lo = _pairwise_sum(e_hi, e_lo, SIZE, BLOCK_D, LEVELS)
    q_hi, q_lo = _pairwise_sum(q_hi, q_lo, 1, BLOCK_D, LEVELS)
    square_hi, square_lo = _multiply(e_hi, e_lo, q_hi, q_lo)
    root = tl.sqrt(square_hi)
    safe = tl.where(root > 0, root, 1.0)
    p, error = _two_product(safe, safe)
    norm_hi, norm_lo = _two_sum(safe, ((square_hi - p) - error + square_lo) / (2 * safe))
    first = dot_hi / norm_hi
    back_hi, back_lo = _multiply(norm_hi, norm_lo, first, tl.zeros_like(first))
    hi, lo = _two_sum(first, ((dot_hi - back_hi) + (dot_lo - back_lo)) / norm_hi)
    return tl.where(root > 0, hi, 0.0), tl.where(root > 0, lo, 0.0), tl.sum(size, 1) / safe
