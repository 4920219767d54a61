"""Arguments of a kernel from their specifications, such as `f32[1024]=normal`; `HELP` says what can be written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from .memory import Storage
from .names import parameter_types
from .syntax import Function, Variable
from .tensor_map import TensorMap

FIRST_ADDRESS, GAP = 0x10_0000_0000, 4096  # of arrays; memory between them belongs to nobody
TYPES = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64}
TYPES |= {f"i{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)}
TYPES |= {f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
IN_TENSOR_MAPS = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i8": "uint8"}
IN_TENSOR_MAPS |= {"i16": "uint16", "i32": "int32", "i64": "int64"} | {f"u{b}": f"uint{b}" for b in (8, 16, 32, 64)}
MOST_BYTES = 1 << 30
CPP_TYPES = {"float": "f32", "double": "f64", "__half": "f16", "__nv_bfloat16": "bf16", "int": "i32", "long": "i64"}
CPP_TYPES |= {
    "long long": "i64",
    "short": "i16",
    "signed char": "i8",
    "char": "i8",
    "bool": "u8",
    "unsigned char": "u8",
}
CPP_TYPES |= {"unsigned short": "u16", "unsigned int": "u32", "unsigned long": "u64", "unsigned long long": "u64"}

HELP = """arguments, one --arg for each parameter of the kernel, in order:
  i32=1024                a number, by value: f16, bf16, f32, f64, i8 to i64, u8 to u64
  bytes=00ff10            bytes in hexadecimal, by value, such as a struct
  f32[1024]=normal        the address of an array that holds
      =normal               normally distributed numbers (always the same ones)
      =0..99                numbers drawn evenly between these, with both ends
      =arange               0, 1, 2, …
      =1.5  or  =1,2,3,4    one number everywhere, or these
      =@file.npy            what numpy.save wrote
  f32[64,32]              an array that nobody has written: reading it is a fault
  out:f32[1024]           the same, and it is printed at the end; out:i32[1]=0 holds 0 before
  same:0                  the address of the array of argument 0
  map:f16[256,128]=normal:box=64x64:swizzle=128
                          a tensor map by value, of an array whose last dimension is contiguous; box and shape in
                          the same order; swizzle 0 (the default), 32, 64 or 128; without =…, nobody has written it"""


class ArgumentError(ValueError):
    """A specification that cannot be understood, in one sentence."""


@dataclass(frozen=True)
class Array:
    """An array in the memory of the device. `values` (shape) is None where nobody has written it.

    The elements of bf16 are uint16: the upper halves of float32.
    """

    type: str
    shape: tuple[int, ...]
    address: int
    values: np.ndarray | None
    printed: bool

    @property
    def size(self) -> int:
        return prod(self.shape) * np.dtype(TYPES[self.type]).itemsize

    def storage(self, name: str) -> Storage:
        """Fresh memory for a run."""
        return Storage(name, self.address, self.size, poisoned=self.values is None, data=self.values)

    def read(self, data: np.ndarray) -> np.ndarray:
        """The elements (shape) in bytes of the memory; those of bf16 as float32."""
        elements = data[: self.size].view(TYPES[self.type]).reshape(self.shape)
        return (elements.astype(np.uint32) << 16).view(np.float32) if self.type == "bf16" else elements


@dataclass(frozen=True)
class Argument:
    text: str
    value: bytes  # what the kernel receives
    array: Array | None = None


def arguments(texts: Sequence[str]) -> list[Argument]:
    """Raises ArgumentError, which names the argument and its text."""
    made: list[Argument] = []
    for number, text in enumerate(texts):
        try:
            made.append(argument(text, made))
        except (ValueError, OverflowError, OSError) as problem:
            raise ArgumentError(f"--arg {text} (argument {number}): {problem}") from None
    return made


def argument(text: str, before: list[Argument]) -> Argument:
    kind, colon, rest = text.partition(":")
    if colon and kind == "same":
        if not rest.isdigit() or int(rest) >= len(before) or before[int(rest)].array is None:
            raise ValueError("same: wants the number of an argument before it that is an array, from 0 on")
        return Argument(text, before[int(rest)].array.address.to_bytes(8, "little"))
    ends = [one.array.address + one.array.size for one in before if one.array]
    address = -(-(max(ends) + GAP) // GAP) * GAP if ends else FIRST_ADDRESS
    if colon and kind == "map":
        return tensor_map(text, rest, address)
    if text.startswith("bytes="):
        return Argument(text, bytes.fromhex(text.removeprefix("bytes=")))
    if scalar := re.fullmatch(r"(\w+)=(.+)", text):
        return Argument(text, filled(known(scalar[1]), (), scalar[2]).tobytes())
    array = array_of(text.removeprefix("out:"), address, text.startswith("out:"))
    return Argument(text, address.to_bytes(8, "little"), array)


def known(name: str) -> str:
    if name not in TYPES:
        raise ValueError(f"the type is {name}, but it must be one of {', '.join(TYPES)}")
    return name


def array_of(text: str, address: int, printed: bool) -> Array:
    match = re.fullmatch(r"(\w+)\[([\d, ]+)\](?:=(.+))?", text)
    if not match:
        raise ValueError("it must look like i32=1024, f32[1024]=normal, out:f32[1024] or map:f16[64,64]:box=64x64")
    shape = tuple(int(size) for size in match[2].split(","))
    array = Array(known(match[1]), shape, address, None, printed)
    if not 1 <= array.size <= MOST_BYTES:
        raise ValueError(f"an array of {array.size} bytes; it must have from 1 to 2^30")
    return (
        array if match[3] is None else Array(array.type, shape, address, filled(array.type, shape, match[3]), printed)
    )


def filled(kind: str, shape: tuple[int, ...], how: str) -> np.ndarray:
    """Elements (shape) of a type: `normal`, `arange`, `0..99`, numbers or a file."""
    integer, drawn = kind[0] in "iu", np.random.default_rng(prod(shape))
    if how == "normal":
        if integer:
            raise ValueError(f"{kind} has no normal distribution; 0..99 draws integers")
        values = drawn.standard_normal(shape)
    elif how == "arange":
        values = np.arange(prod(shape)).reshape(shape)
    elif how.startswith("@"):
        values = np.load(how[1:], allow_pickle=False)
        if values.shape != shape:
            raise ValueError(f"the file holds an array of shape {values.shape}")
    elif ".." in how:
        low, high = (number(one, integer) for one in how.split("..", 1))
        values = drawn.integers(low, high, shape, endpoint=True) if integer else drawn.uniform(low, high, shape)
    else:
        values = np.array([number(one, integer) for one in how.split(",")], object)
        if len(values) not in (1, prod(shape)):
            raise ValueError(f"{len(values)} numbers for {prod(shape)} elements")
        values = values.reshape(shape) if len(values) == prod(shape) else np.broadcast_to(values, shape)
    return converted(values, kind)


def number(text: str, integer: bool) -> int | float:
    try:
        return int(text, 0) if integer else float(text)
    except ValueError:
        raise ValueError(f"{text} is no {'integer' if integer else 'number'}") from None


def converted(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    if kind[0] in "iu" and values.size:
        limits, low, high = np.iinfo(TYPES[kind]), values.min(), values.max()
        if not limits.min <= low <= high <= limits.max:
            raise ValueError(f"{low if low < limits.min else high} does not fit into {kind}")
    with np.errstate(over="ignore"):
        return values.astype(TYPES[kind])


def tensor_map(text: str, rest: str, address: int) -> Argument:
    described, *options = rest.split(":")
    given = dict(option.partition("=")[::2] for option in options)
    if unknown := given.keys() - {"box", "swizzle"}:
        raise ValueError(f"a tensor map has box=… and swizzle=…, not {', '.join(sorted(unknown))}")
    array = array_of(described, address, False)
    if not re.fullmatch(r"\d+([x,]\d+)*", given.get("box", "")):
        raise ValueError("a tensor map needs a box such as :box=64x64")
    box = tuple(int(side) for side in re.split("[x,]", given["box"]))
    size = np.dtype(TYPES[array.type]).itemsize
    made = TensorMap(
        address=address,
        element_bytes=size,
        sizes=array.shape[::-1],
        strides=tuple(prod(array.shape[i:]) * size for i in range(len(array.shape) - 1, 0, -1)),
        box=box[::-1],
        element_strides=(1,) * len(array.shape),
        swizzle=int(number(given.get("swizzle", "0"), True)),
        interleave=0,
        fill_nan=False,
        element_type=IN_TENSOR_MAPS[array.type],
    )
    return Argument(text, made.to_bytes(), array)


def wanted(kernel: Function) -> list[str]:
    """For each parameter of a kernel an argument that would suit it, by its C++ type where the name tells it."""
    types = parameter_types(kernel.name)
    types = types if len(types) == len(kernel.parameters) else [""] * len(kernel.parameters)
    return [suiting(parameter, cpp) for parameter, cpp in zip(kernel.parameters, types, strict=True)]


def suiting(parameter: Variable, cpp: str) -> str:
    letter, digits = re.fullmatch(r"([a-z]+)(\d+)", parameter.type).groups()
    if parameter.size == 128 and parameter.align >= 64:
        return "--arg map:f16[256,128]=normal:box=64x64:swizzle=128"
    if letter in "sub" and parameter.size != int(digits) // 8:
        return f"--arg bytes={'00' * min(parameter.size, 4)}{'…' if parameter.size > 4 else ''}"
    pointed = CPP_TYPES.get(cpp.rstrip("*").removesuffix(" const").strip()) if cpp.endswith("*") else None
    if pointed and " const" in cpp:
        return f"--arg {pointed}[1024]={'0..99' if pointed[0] in 'iu' else 'normal'}"
    if pointed:
        return f"--arg out:{pointed}[1024]"
    if parameter.pointer or cpp.endswith("*"):
        return "--arg f32[1024]=normal, or --arg out:f32[1024] for a result"
    if parameter.type in ("u64", "b64") and cpp not in CPP_TYPES:
        return "--arg u64=0, or --arg f32[1024]=normal if it is an address"
    kind = "f" if letter == "f" else "i"
    return f"--arg {CPP_TYPES.get(cpp, kind + digits)}=1"
