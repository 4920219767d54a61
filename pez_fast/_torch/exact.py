"""Cosines compared beyond float64, for the few candidates that float64 cannot tell apart.

A number is held as an unevaluated sum hi + lo of two float64 (Dekker 1971), which gives about 104 bits. The products of
float32 values are exact in float64, so only their sums need it.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # hi, lo: hi is the float64 nearest to hi + lo

# Cosines in double-double differ from the true ones by far less than this; closer ones are equal.
TIE = 2.0**-90


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
    """Sum over the last dimension of a * b, added pairwise."""
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
