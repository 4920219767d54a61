"""How tensor cores add, to the bit.

Along K, a block of products and the sum so far are aligned under the largest exponent among them, truncated towards
zero some binary places behind the point, added exactly, and truncated towards zero to float32. The exponent of a
product is the sum of its factors' exponents, not normalised. A subnormal number has the exponent of the smallest
normal one. Xie et al. 2025 (MMA-Sim, arXiv 2511.10909) measured block sizes and places.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A sum takes `block` products at a time, and keeps `bits` places behind the point of the largest."""

    block: int
    bits: int


RULES = {"ampere": Rule(8, 24), "hopper": Rule(16, 25)}

_NO_EXPONENT = -1000  # of zero
_LEAST_EXPONENT = -400  # two bf16 factors have -252
_NAN = np.uint32(0x7FFFFFFF)
_LOW_29 = np.uint64((1 << 29) - 1)  # of a double's fraction: the places that float32 lacks


def rule_of(architecture: int) -> Rule:
    """The rule of sm_<architecture>, with 80 for sm_80."""
    if architecture < 80:
        raise ValueError(f"How tensor cores add is known from sm_80 on, not on sm_{architecture}.")
    return RULES["ampere" if architecture < 90 else "hopper"]


def multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray | None, rule: Rule) -> np.ndarray:
    """a b^T + c as tensor cores compute it. One thread at a time: calls share their scratch memory.

    a (M, K) and b (N, K): float16, or float32 that holds bf16 values. c (M, N) float32, or None for zero.
    -> (M, N) float32. A sum of zero is +0. Any NaN, infinity times zero and opposing infinities give the NaN
    0x7fffffff.
    """
    if a.dtype != b.dtype or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"The factors differ: {a.dtype} {a.shape} and {b.dtype} {b.shape}.")
    (first, first_exponent, finite_a), (second, second_exponent, finite_b) = _factors(a), _factors(b)
    total = np.zeros((len(a), len(b)), np.float32) if c is None else np.ascontiguousarray(c, np.float32)
    finite = finite_a and finite_b and (c is None or np.isfinite(total).all())
    for start in range(0, a.shape[1], rule.block):
        part = slice(start, start + rule.block)
        pairs = first[part, :, None], second[part, None, :]
        shape = len(pairs[0]), len(a), len(b)
        product = np.multiply(*pairs, out=_scratch(shape, first.dtype))
        exponent = np.add(
            first_exponent[part, :, None], second_exponent[part, None, :], out=_scratch(shape, first_exponent.dtype)
        )
        after = _add(product, np.maximum.reduce(exponent, axis=0), total, rule)
        total = after if finite else _with_specials(after, a[:, part], b[:, part], total)
    return total


@lru_cache(maxsize=64)
def _scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that is kept: to ask the system for large arrays in every call takes longer than the arithmetic."""
    return np.empty(shape, dtype)


def _factors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """x (R, K) -> values (K, R) of a type that holds products exactly, exponents (K, R) int16, and if all is finite.

    The products of two halves fit into float32, those of two bf16 values only into float64. Where x is not finite, the
    value is zero.
    """
    x = np.ascontiguousarray(x.T)
    if x.dtype == np.float16:
        exponent, wide, limit = _exponents(x.view(np.uint16), 10, 15), np.float32, 16
    elif x.dtype == np.float32:
        exponent, wide, limit = _exponents(x.view(np.uint32), 23, 127), np.float64, 128
        if (x.view(np.uint32) << 16).any():
            raise ValueError("Factors in float32 must hold bf16 values, but some have more bits.")
    else:
        raise TypeError(f"Factors are float16, or float32 that holds bf16 values, but not {x.dtype}.")
    finite = not exponent.size or bool(exponent.max() < limit)
    if not finite:
        x = np.where(exponent < limit, x, 0)
        exponent[exponent == limit] = _NO_EXPONENT
    return x.astype(wide), exponent, finite


def _exponents(bits: np.ndarray, fraction: int, bias: int) -> np.ndarray:
    """The exponents of floating-point numbers, given as bits with so many of a fraction -> int16, the same shape."""
    width = 8 * bits.itemsize - 1 - fraction
    exponent = (bits >> fraction & (1 << width) - 1).astype(np.int16)
    exponent -= bias
    if (low := exponent == -bias).any():
        exponent[low] = np.where(bits[low] << 1, 1 - bias, _NO_EXPONENT)  # the sign is shifted out
    return exponent


def _add(product: np.ndarray, largest: np.ndarray, total: np.ndarray, rule: Rule) -> np.ndarray:
    """product (block, M, N), which is overwritten; largest exponent (M, N); sum so far (M, N) -> (M, N) float32."""
    np.maximum(largest, _exponents(total.view(np.uint32), 23, 127), out=largest)
    places = rule.bits - np.maximum(largest, _LEAST_EXPONENT)
    scale = _power_of_two(places, np.float64)
    # Where float32 cannot hold the scale, all products are zero.
    product *= _power_of_two(np.minimum(places, 127), np.float32) if product.dtype == np.float32 else scale
    # Significands of products are below 4: a product has less than 2 ** (bits + 2) units.
    integer = np.dtype(np.int32 if len(product) << rule.bits + 2 <= 1 << 31 else np.int64)
    units = _scratch(product.shape, integer)
    np.copyto(units, product, casting="unsafe")
    exact = np.add.reduce(units, axis=0, dtype=integer) + np.trunc(total * scale)
    exact /= scale
    exact.view(np.uint64)[...] &= ~_LOW_29
    if product.dtype == np.float32:
        return exact.astype(np.float32)
    # Only bf16 reaches beyond the normal numbers of float32.
    cut = np.where(np.abs(exact) < 2.0**-126, np.trunc(exact * 2.0**149) * 2.0**-149 + 0.0, exact)
    with np.errstate(over="ignore"):
        return cut.astype(np.float32)


def _power_of_two(exponent: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """2 ** exponent, an int16 array in the range of the dtype's normal numbers -> float32 or float64."""
    if dtype == np.float32:
        return (exponent.astype(np.int32) + 127 << 23).view(np.float32)
    return (exponent.astype(np.int64) + 1023 << 52).view(np.float64)


def _with_specials(after: np.ndarray, a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Puts NaN and infinities in their places: a (M, block), b (N, block), the sum before and after (M, N)."""
    with np.errstate(invalid="ignore"):
        product = a.astype(np.float64)[:, None, :] * b.astype(np.float64)[None, :, :]  # finite, where both are
        probe = product.sum(axis=-1) + total
    after = np.where(np.isinf(probe), probe.astype(np.float32), after)
    after.view(np.uint32)[np.isnan(probe)] = _NAN
    return after
