"""Integer arithmetic of PTX: sums, products, quotients, minima and maxima."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .operation import INTEGERS, SIGNED, Operation, Table, Type

LOW = np.uint32(0x0000FFFF)
HIGH = np.uint32(0xFFFF0000)
WORD = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
WIDER = {"u16": "u32", "u32": "u64", "s16": "s32", "s32": "s64"}


def on_numbers(function: Callable, of: Type) -> Callable:
    """The function of numbers as one of registers."""
    if of.register is of.number:
        return function
    number, register = of.number, of.register
    return lambda *sources: function(*[source.view(number) for source in sources]).view(register)


def high_product(of: Type) -> Callable:
    """The upper half of a product."""
    if of.width == 64:
        return _high_product_s64 if of.number is np.int64 else _high_product_u64
    wide = np.int64 if np.issubdtype(of.number, np.signedinteger) else np.uint64
    width = wide(of.width)

    def high(a, b):
        return ((a.view(of.number).astype(wide) * b.view(of.number)) >> width).astype(of.register)

    return high


def _high_product_u64(a, b):
    a_low, a_high, b_low, b_high = a & WORD, a >> SHIFT, b & WORD, b >> SHIFT
    middle = a_high * b_low + (a_low * b_low >> SHIFT)
    other = a_low * b_high + (middle & WORD)
    return a_high * b_high + (middle >> SHIFT) + (other >> SHIFT)


def _high_product_s64(a, b):
    zero = np.uint64(0)
    a_negative, b_negative = a.view(np.int64) < 0, b.view(np.int64) < 0
    return _high_product_u64(a, b) - np.where(a_negative, b, zero) - np.where(b_negative, a, zero)


def wide_product(of: Type, wide: Type) -> Callable:
    """The whole product, twice as wide."""

    def product(a, b):
        return (a.view(of.number).astype(wide.number) * b.view(of.number)).view(wide.register)

    return product


def _then_add(product: Callable) -> Callable:
    return lambda a, b, c: product(a, b) + c


def quotient(of: Type) -> Callable:
    """The quotient, rounded towards zero. Division by zero sets all bits."""
    ones = of.register(2**of.width - 1)
    zero = of.register(0)

    def unsigned(a, b):
        return np.where(b == zero, ones, a // b)

    def signed(a, b):
        x, y = a.view(of.number), b.view(of.number)
        size = np.abs(x).view(of.register) // np.abs(y).view(of.register)
        return np.where(b == zero, ones, np.where((x < 0) != (y < 0), zero - size, size))

    return unsigned if of.register is of.number else signed


def remainder(of: Type) -> Callable:
    """The remainder, with the sign of the dividend. Division by zero gives the dividend."""
    zero = of.register(0)

    def unsigned(a, b):
        return np.where(b == zero, a, a % b)

    def signed(a, b):
        x, y = a.view(of.number), b.view(of.number)
        size = np.abs(x).view(of.register) % np.abs(y).view(of.register)
        return np.where(b == zero, a, np.where(x < 0, zero - size, size))

    return unsigned if of.register is of.number else signed


def _saturating(function: Callable) -> Callable:
    """function(a, b) of int32, computed in int64 and clamped."""
    low, high = np.int64(-(2**31)), np.int64(2**31 - 1)

    def saturated(a, b):
        exact = function(a.view(np.int32).astype(np.int64), b.view(np.int32))
        return np.clip(exact, low, high).astype(np.int32).view(np.uint32)

    return saturated


def _each_half(function: Callable) -> Callable:
    """A sum or difference of two halves of 16 bits each."""
    return lambda a, b: (function(a, b) & LOW) | (function(a & HIGH, b & HIGH) & HIGH)


def _compare_halves(function: Callable, number: type) -> Callable:
    """The minimum or maximum of two halves of 16 bits each."""
    shift = np.uint32(16)

    def both(a, b):
        low = function(a.astype(np.uint16).view(number), b.astype(np.uint16).view(number))
        high = function((a >> shift).astype(np.uint16).view(number), (b >> shift).astype(np.uint16).view(number))
        return low.view(np.uint16).astype(np.uint32) | (high.view(np.uint16).astype(np.uint32) << shift)

    return both


def _products(name: str, of: Type) -> Table:
    one, two, three = (of.kind,), (of.kind,) * 2, (of.kind,) * 3
    high = high_product(of)
    table = {
        f"mul.lo.{name}": Operation(np.multiply, two, *one),
        f"mad.lo.{name}": Operation(_then_add(np.multiply), three, *one),
        f"mul.hi.{name}": Operation(high, two, *one),
        f"mad.hi.{name}": Operation(_then_add(high), three, *one),
    }
    if name in WIDER:
        wide = INTEGERS[WIDER[name]]
        product = wide_product(of, wide)
        table[f"mul.wide.{name}"] = Operation(product, two, wide.kind)
        table[f"mad.wide.{name}"] = Operation(_then_add(product), (*two, wide.kind), wide.kind)
    return table


def operations() -> Table:
    """All instructions of this file."""
    table: Table = {}
    for name, of in INTEGERS.items():
        functions = {"add": np.add, "sub": np.subtract, "div": quotient(of), "rem": remainder(of)}
        functions |= {"min": on_numbers(np.minimum, of), "max": on_numbers(np.maximum, of)}
        table |= {f"{key}.{name}": Operation(f, (of.kind, of.kind), of.kind) for key, f in functions.items()}
        table |= _products(name, of)
    for name, of in SIGNED.items():
        table[f"neg.{name}"] = Operation(np.negative, (of.kind,), of.kind)
        table[f"abs.{name}"] = Operation(on_numbers(np.abs, of), (of.kind,), of.kind)
    for name, function in {"add": np.add, "sub": np.subtract}.items():
        table[f"{name}.sat.s32"] = Operation(_saturating(function), ("b32", "b32"), "b32")
        for half in ("u16x2", "s16x2"):
            table[f"{name}.{half}"] = Operation(_each_half(function), ("b32", "b32"), "b32")
    for name, function in {"min": np.minimum, "max": np.maximum}.items():
        for half, number in {"u16x2": np.uint16, "s16x2": np.int16}.items():
            table[f"{name}.{half}"] = Operation(_compare_halves(function, number), ("b32", "b32"), "b32")
    return table
