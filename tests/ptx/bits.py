"""Logic, shifts, bit fields and permutations of bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .masks import FULL
from .operation import INTEGERS, SIGNED, UNSIGNED, UNTYPED, Operation, Table, Type

BYTE = np.uint32(0xFF)
NIBBLES = np.arange(0, 16, 4, dtype=np.uint32)
ONES = np.uint32(FULL)
REVERSED = np.array([int(f"{octet:08b}"[::-1], 2) for octet in range(256)], np.uint8)


def shift_left(of: Type) -> Callable:
    """a << b, where a shift by the width or more gives zero."""
    return lambda a, b: np.left_shift(a, _amount(b, of.register))


def shift_right(of: Type) -> Callable:
    """a >> b, where a shift by the width or more leaves zeros, or the sign where a is signed."""
    return lambda a, b: np.right_shift(a.view(of.number), _amount(b, of.number)).view(of.register)


def _amount(b, number: type):
    """The amount, of dtype uint32, in a dtype that keeps the one of the shifted value.

    numpy itself clamps the amount of a shift: also a negative one counts as too large.
    """
    if number is np.int32:
        return b.view(number)
    return b if number in (np.uint32, np.uint64, np.int64) else np.minimum(b, np.uint32(63)).astype(number)


def funnel_shift(left: bool, wrap: bool) -> Callable:
    """shf.l and shf.r: 32 bits of the shifted pair (b, a), where b is the upper half."""
    word = np.uint64(32)

    def shift(a, b, c):
        amount = (c & np.uint32(31) if wrap else np.minimum(c, np.uint32(32))).astype(np.uint64)
        pair = (b.astype(np.uint64) << word) | a
        return ((pair << amount) >> word if left else pair >> amount).astype(np.uint32)

    return shift


def extract(of: Type) -> Callable:
    """bfe: the field of a at bit b & 255, of c & 255 bits; signed fields, and those past the end, extend the sign."""
    width, ones = np.uint32(of.width), of.register(2**of.width - 1)

    def unsigned(a, b, c):
        mask = ~np.left_shift(ones, _amount(c & BYTE, of.register))
        return np.right_shift(a, _amount(b & BYTE, of.register)) & mask

    def signed(a, b, c):
        x = np.right_shift(a.view(of.number), _amount(b & BYTE, of.number))
        unused = (width - np.minimum(c & BYTE, width)).astype(of.number)
        return np.right_shift(np.left_shift(x, unused), unused).view(of.register)

    return unsigned if of.register is of.number else signed


def insert(of: Type) -> Callable:
    """bfi: b, with the lowest d & 255 bits of a put at bit c & 255."""
    ones = of.register(2**of.width - 1)

    def field(a, b, c, d):
        position = _amount(c & BYTE, of.register)
        mask = np.left_shift(~np.left_shift(ones, _amount(d & BYTE, of.register)), position)
        return (b & ~mask) | (np.left_shift(a, position) & mask)

    return field


def highest_bit(a, of: Type):
    """The index of the highest bit that is set, of dtype int32, or -1."""
    if of.width == 32:
        return np.frexp(a.astype(np.float64))[1] - np.int32(1)
    high = np.frexp((a >> np.uint64(32)).astype(np.float64))[1]
    low = np.frexp((a & np.uint64(FULL)).astype(np.float64))[1]
    return np.where(high > 0, high + np.int32(32), low) - np.int32(1)


def find_bit(of: Type, shift_amount: bool) -> Callable:
    """bfind: the highest bit that differs from the sign, or the shift that brings it to the top; all ones if none."""
    last = np.int32(of.width - 1)

    def find(a):
        if of.register is not of.number:
            a = np.where(a.view(of.number) < 0, ~a, a)
        index = highest_bit(a, of)
        return (np.where(index < 0, index, last - index) if shift_amount else index).view(np.uint32)

    return find


def count_leading_zeros(of: Type) -> Callable:
    """clz, of dtype uint32."""
    last = np.int32(of.width - 1)
    return lambda a: (last - highest_bit(a, of)).view(np.uint32)


def population_count(a):
    """popc, of dtype uint32."""
    return np.bitwise_count(a).astype(np.uint32)


def reverse_bits(a):
    """brev."""
    a = np.atleast_1d(a)
    return REVERSED[a.view(np.uint8)].view(a.dtype).byteswap()


@lru_cache(maxsize=256)
def _monomials(table: int) -> tuple[int, ...]:
    """The products whose exclusive or is the function of the table; bits 4, 2 and 1 stand for a, b and c."""
    subsets = ([part for part in range(8) if part & product == part] for product in range(8))
    return tuple(i for i, parts in enumerate(subsets) if sum(table >> part & 1 for part in parts) % 2)


def logic3(a, b, c, table):
    """lop3: bit by bit, the bit of the table at the index 4 a + 2 b + c. The table is a scalar."""
    products = (ONES, c, b, b & c, a, a & c, a & b, a & b & c)
    result = np.uint32(0)
    for index in _monomials(int(table) & 0xFF):
        result = result ^ products[index]
    return result


def permute(a, b, c):
    """prmt: byte i of the result is byte n & 7 of (b, a), where n is nibble i of c; its sign alone if n & 8 is set."""
    pair = np.atleast_1d((b.astype(np.uint64) << np.uint64(32)) | a)
    octets = pair.view(np.uint8).reshape(-1, 8)
    choices = np.concatenate([octets, (octets >> np.uint8(7)) * np.uint8(255)], axis=1)
    nibbles = (np.atleast_1d(c)[:, None] >> NIBBLES) & np.uint32(15)
    rows = np.arange(len(choices))[:, None]
    return np.ascontiguousarray(choices[rows, nibbles]).view(np.uint32)[:, 0]


def _logic() -> Table:
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    table = {
        "not.pred": Operation(lambda p: FULL ^ p, ("pred",), "pred"),
        "and.pred": Operation(lambda p, q: p & q, ("pred", "pred"), "pred"),
        "or.pred": Operation(lambda p, q: p | q, ("pred", "pred"), "pred"),
        "xor.pred": Operation(lambda p, q: p ^ q, ("pred", "pred"), "pred"),
    }
    for kind in UNTYPED:
        table[f"not.{kind}"] = Operation(np.invert, (kind,), kind)
        table |= {f"{name}.{kind}": Operation(f, (kind, kind), kind) for name, f in functions.items()}
    return table


def _shifts() -> Table:
    table = {f"shl.{kind}": Operation(shift_left(of), (kind, "b32"), kind) for kind, of in UNTYPED.items()}
    for name, of in (INTEGERS | UNTYPED).items():
        table[f"shr.{name}"] = Operation(shift_right(of), (of.kind, "b32"), of.kind)
    for side in "lr":
        for mode in ("wrap", "clamp"):
            function = funnel_shift(side == "l", mode == "wrap")
            table[f"shf.{side}.{mode}.b32"] = Operation(function, ("b32",) * 3, "b32")
    return table


def operations() -> Table:
    """All instructions of this file."""
    table = _logic() | _shifts()
    for name, of in (UNSIGNED | SIGNED).items():
        if of.width == 16:
            continue
        table[f"bfe.{name}"] = Operation(extract(of), (of.kind, "b32", "b32"), of.kind)
        table[f"bfind.{name}"] = Operation(find_bit(of, False), (of.kind,), "b32")
        table[f"bfind.shiftamt.{name}"] = Operation(find_bit(of, True), (of.kind,), "b32")
    for kind in ("b32", "b64"):
        of = UNTYPED[kind]
        table[f"bfi.{kind}"] = Operation(insert(of), (kind, kind, "b32", "b32"), kind)
        table[f"clz.{kind}"] = Operation(count_leading_zeros(of), (kind,), "b32")
        table[f"popc.{kind}"] = Operation(population_count, (kind,), "b32")
        table[f"brev.{kind}"] = Operation(reverse_bits, (kind,), kind)
    table["lop3.b32"] = Operation(logic3, ("b32",) * 4, "b32")
    table["prmt.b32"] = Operation(permute, ("b32",) * 3, "b32")
    return table
