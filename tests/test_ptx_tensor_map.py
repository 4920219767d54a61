"""The record of a tensor map: what the driver refuses, and the bytes that a kernel receives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ptx.tensor_map import BYTES, ELEMENT_BYTES, ELEMENT_TYPES, MAGIC, TensorMap

MATRIX = TensorMap(
    address=0x7F0000001000,
    element_bytes=2,
    sizes=(128, 1 << 32),
    strides=(256,),
    box=(64, 256),
    element_strides=(1, 1),
    swizzle=128,
    interleave=0,
    fill_nan=False,
    element_type="float16",
)
FIVE = TensorMap(32, 4, (8, 7, 6, 5, 4), (32, 224, 1344, 6720), (8, 2, 3, 4, 1), (1, 2, 8, 1, 1), 0, 0, True, "float32")
THREE = TensorMap(64, 1, (32, 5, 9), (32, 160), (48, 5, 1), (1, 1, 1), 32, 32, False, "uint8")
ONE = TensorMap(16, 8, (5,), (), (2,), (1,), 0, 0, False, "int64")
VALID = (MATRIX, FIVE, THREE, ONE)

REFUSED = {
    "the address 0x7f0000001008 is not aligned": {"address": 0x7F0000001008},
    "a stride must be a multiple of 16 bytes, not 264": {"strides": (264,)},
    "a stride must be below 2^40 bytes": {"strides": (1 << 40,)},
    "a size must be from 1 to 2^32, not 0": {"sizes": (0, 8)},
    "a size must be from 1 to 2^32, not 4294967297": {"sizes": (64, (1 << 32) + 1)},
    "a side of the box must be from 1 to 256, not 0": {"box": (64, 0)},
    "a side of the box must be from 1 to 256, not 257": {"box": (64, 257)},
    "innermost side of 256 bytes exceeds the swizzle of 128": {"box": (128, 8)},
    "innermost side of 128 bytes exceeds the swizzle of 64": {"swizzle": 64},
    "innermost side must be a multiple of 16 bytes, not 120": {"box": (60, 8)},
    "an element stride must be from 1 to 8, not 0": {"element_strides": (1, 0)},
    "an element stride must be from 1 to 8, not 9": {"element_strides": (9, 1)},
    "the rank must be from 1 to 5, not 0": {"sizes": (), "strides": (), "box": (), "element_strides": ()},
    "the rank must be from 1 to 5, not 6": {"sizes": (64,) * 6},
    "the rank must be from 3 to 5, not 2": {"interleave": 16},
    "must suit the rank": {"box": (64,)},
    "interleave of 32 bytes needs a swizzle of 32 bytes": {"interleave": 32},
    "the swizzle must be 0, 32, 64 or 128 bytes wide": {"swizzle": 3},
    "the interleave must be 0, 16 or 32": {"interleave": 1},
    "int64 has 8 bytes, not 2": {"element_type": "int64"},
    "uint16 has no NaN": {"element_type": "uint16", "fill_nan": True},
    "there is no element type 'float8'": {"element_type": "float8"},
}


@pytest.mark.parametrize("one", VALID)
def test_there_and_back(one):
    data = one.to_bytes()
    assert len(data) == BYTES and data.startswith(MAGIC)
    assert TensorMap.from_bytes(data) == one
    assert TensorMap.from_bytes(memoryview(data)) == one


def test_all_types():
    for name, size in zip(ELEMENT_TYPES, ELEMENT_BYTES, strict=True):
        one = replace(MATRIX, element_type=name, element_bytes=size, box=(16 // size, 1))
        assert TensorMap.from_bytes(one.to_bytes()) == one


@pytest.mark.parametrize("sentence", REFUSED)
def test_refused(sentence):
    refused = replace(MATRIX, **REFUSED[sentence])
    for use in (refused.check, refused.to_bytes):
        with pytest.raises(ValueError) as error:
            use()
        assert sentence in str(error.value)


def test_garbage_is_refused():
    data = MATRIX.to_bytes()
    for at in range(BYTES):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ValueError, match="no tensor map"):
            TensorMap.from_bytes(changed)
    for garbage in (b"", data[:-1], data + b"\0", bytes(BYTES)):
        with pytest.raises(ValueError):
            TensorMap.from_bytes(garbage)
