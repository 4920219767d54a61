"""Compares cosines beyond float64, for the few candidates that float64 cannot tell apart.

First as unevaluated sums hi + lo of two float64 (Dekker 1971), which have about 104 bits. Cosines that these cannot
tell apart are equal in all but contrived cases; a test for parallel rows and exact integers decide among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # hi, lo: hi is the float64 nearest to hi + lo


def error(d: int) -> float:
    """The bound on the error of a double-double cosine of rows of d elements: less than 2^-104 for each addition."""
    return (d + 32) * 2.0**-102


def _two_sum(a: Tensor, b: Tensor) -> Pair:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Tensor, b: Tensor) -> Pair:
    def split(x: Tensor) -> Pair:
        t = x * 134217729.0  # 2^27 + 1
        high = t - (t - x)
        return high, x - high

    p = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _add(x: Pair, y: Pair) -> Pair:
    s, e = _two_sum(x[0], y[0])
    return _two_sum(s, e + (x[1] + y[1]))


def _dot(a: Tensor, b: Tensor) -> Pair:
    """The sum over the last dimension of a * b, added pairwise."""
    hi, lo = _two_product(a, b)
    while hi.shape[-1] > 1:
        if hi.shape[-1] % 2:
            hi, lo = (torch.cat([t, t.new_zeros(*t.shape[:-1], 1)], -1) for t in (hi, lo))
        half = hi.shape[-1] // 2
        hi, lo = _add((hi[..., :half], lo[..., :half]), (hi[..., half:], lo[..., half:]))
    return hi[..., 0], lo[..., 0]


def cosine(q: Tensor, e: Tensor) -> Pair:
    """<q, e> / (|q| |e|) of rows, (C, d) float64 both -> two (C,) float64; 0 where a row is zero."""
    dot = _dot(q, e)
    square = _multiply(_dot(q, q), _dot(e, e))
    root = square[0].sqrt()
    safe = torch.where(root > 0, root, 1.0)
    p, err = _two_product(safe, safe)
    norm = _two_sum(safe, ((square[0] - p) - err + square[1]) / (2 * safe))
    first = dot[0] / norm[0]
    back = _multiply(norm, (first, torch.zeros_like(first)))
    hi, lo = _two_sum(first, ((dot[0] - back[0]) + (dot[1] - back[1])) / norm[0])
    return torch.where(root > 0, hi, 0.0), torch.where(root > 0, lo, 0.0)


def _multiply(x: Pair, y: Pair) -> Pair:
    p, e = _two_product(x[0], y[0])
    return _two_sum(p, e + (x[0] * y[1] + x[1] * y[0]))


def parallel(a: Tensor, b: Tensor) -> Tensor:
    """(C,) bool: which rows of a (C, d) are positive multiples of those of b; both hold values of narrower dtypes.

    a = t b with t > 0 if and only if a_k b_p = b_k a_p for every k, where p is an index at which b is not zero. These
    products of two float32 values are exact in float64.
    """
    a, b = a.double(), b.double()
    pivot = b.abs().argmax(-1, keepdim=True)
    ap, bp = a.gather(-1, pivot), b.gather(-1, pivot)
    return (a * bp == b * ap).all(-1) & (ap.sign() == bp.sign())[:, 0]


def first_largest(q: Tensor, rows: Tensor) -> int:
    """The index of the first of `rows` (C, d) with the largest cosine with q (d,), computed in exact integers."""
    x = _whole(q.tolist())
    best, numerator, denominator = 0, None, 1
    for k, row in enumerate(rows.tolist()):
        e = _whole(row)
        dot = sum(a * b for a, b in zip(x, e, strict=True))
        square = sum(b * b for b in e)
        # sign(dot) dot^2 / |e|^2 is in the order of the cosines.
        key = (dot * abs(dot), square) if square else (0, 1)
        if numerator is None or key[0] * denominator > numerator * key[1]:
            best, (numerator, denominator) = k, key
    return best


def _whole(values: Sequence[float]) -> list[int]:
    """The values times 2^1074, which are integers."""
    ratios = [v.as_integer_ratio() for v in values]
    return [n * (2**1074 // d) for n, d in ratios]
