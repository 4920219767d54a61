"""The layouts of the matrix instructions, compared with two sources: the PTX manual and CuTe.

The figures of the manual say which thread holds a place of a matrix, the other way round than `ptx.layouts`, and are
written out so here. What CuTe says lies in ptx_layouts_of_cute.json. ptx_layouts_of_cute.cpp wrote it, compiled with
g++ 12 against CUTLASS 4.2.0 (the wheel nvidia-cutlass 4.2.0.0) and CUDA 13.0. Where CUTE_INCLUDE names CUTLASS's
folder of headers, it is written again and compared.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ptx import layouts

TABLE = Path(__file__).with_name("ptx_layouts_of_cute.json")
CUTE = json.loads(TABLE.read_text())
MODES = (0, 32, 64, 128)


def same(layout: layouts.Positions, *expected: np.ndarray) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(layout, expected, strict=True))


def from_owners(shape: tuple[int, int], elements: int, owner) -> tuple[np.ndarray, np.ndarray]:
    """owner(row, column) -> (lane, element), as the manual's figures show it -> rows, columns (32, elements)."""
    rows, columns = np.full((2, 32, elements), -1)
    for row in range(shape[0]):
        for column in range(shape[1]):
            at = owner(row, column)
            assert rows[at] == -1  # nothing is held twice
            rows[at], columns[at] = row, column
    return rows, columns


def owner_in_a(row: int, column: int) -> tuple[int, int]:
    """a0, a1 upper left; a2, a3 lower left; a4, a5 upper right; a6, a7 lower right."""
    quarter = {(0, 0): 0, (1, 0): 2, (0, 1): 4, (1, 1): 6}[row // 8, column // 8]
    return row % 8 * 4 + column % 8 // 2, quarter + column % 2


def owner_in_b(row: int, column: int) -> tuple[int, int]:
    """b0, b1 in rows 0 to 7; b2, b3 in rows 8 to 15."""
    return column * 4 + row % 8 // 2, (0 if row < 8 else 2) + row % 2


def owner_in_d(row: int, column: int) -> tuple[int, int]:
    """For every eight columns, d0, d1 in rows 0 to 7 and d2, d3 in rows 8 to 15."""
    return row % 8 * 4 + column % 8 // 2, column // 8 * 4 + (0 if row < 8 else 2) + column % 2


def test_the_manuals_figures():
    for k in (8, 16):
        assert same(layouts.mma_a(k), *from_owners((16, k), k // 2, owner_in_a))
        assert same(layouts.mma_b(k), *from_owners((k, 8), k // 4, owner_in_b))
    assert same(layouts.wgmma_a(), *from_owners((16, 16), 8, owner_in_a))
    assert same(layouts.mma_c(), *from_owners((16, 8), 4, owner_in_d))
    for n in (8, 16, 64, 128, 256):
        assert same(layouts.wgmma_d(n), *from_owners((16, n), n // 2, owner_in_d))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_manuals_figure_of_ldmatrix(transposed):
    """Thread 0 holds the first two elements of row 0, thread 4 those of row 1; with .trans, columns for rows."""
    rows, columns = from_owners((8, 8), 2, lambda row, column: (row * 4 + column // 2, column % 2))
    expected = (columns, rows) if transposed else (rows, columns)
    assert same(layouts.matrix_8x8(transposed=transposed), *expected)
    for lane in range(32):
        assert same(layouts.matrix_8x8(lane, transposed), expected[0][lane], expected[1][lane])


def mode(shape: int | list, stride: int | list) -> np.ndarray:
    """All indices of a mode of a CuTe layout, in its order: the first part of a nested mode runs fastest."""
    if isinstance(shape, int):
        return np.arange(shape) * stride
    indices = np.zeros(1, int)
    for part in zip(shape, stride, strict=True):
        indices = (mode(*part)[:, None] + indices).ravel()
    return indices


def of_cute(name: str) -> np.ndarray:
    """A layout (threads, values) -> indices of that shape."""
    threads, values = (mode(*part) for part in zip(CUTE[name]["shape"], CUTE[name]["stride"], strict=True))
    return threads[:, None] + values


def cute_positions(name: str, height: int) -> tuple[np.ndarray, np.ndarray]:
    """CuTe counts the places of a matrix down its columns."""
    indices = of_cute(name)
    return indices % height, indices // height


@pytest.mark.parametrize("k", [8, 16])
def test_cutes_mma(k):
    assert same(layouts.mma_a(k), *cute_positions(f"m16n8k{k} A", 16))
    assert same(layouts.mma_b(k), *cute_positions(f"m16n8k{k} B", 8)[::-1])  # (N, K)
    assert same(layouts.mma_c(), *cute_positions(f"m16n8k{k} C", 16))


@pytest.mark.parametrize("warp", range(4))
def test_cutes_wgmma(warp):
    def of_warp(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = (part[32 * warp :][:32] for part in cute_positions(name, 64))
        return rows - 16 * warp, columns

    assert same(layouts.wgmma_d(256), *of_warp("m64n256k16 from memory C"))
    assert same(layouts.wgmma_d(256), *of_warp("m64n256k16 from registers C"))
    assert same(layouts.wgmma_d(16), *of_warp("m64n16k16 from memory C"))
    assert same(layouts.wgmma_a(), *of_warp("m64n256k16 from registers A"))


@pytest.mark.parametrize(
    ("name", "count", "memory", "registers"),
    [("ldmatrix", 1, "source", "result"), ("ldmatrix", 4, "source", "result"), ("stmatrix", 1, "result", "source")],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_cutes_ldmatrix_and_stmatrix(name, count, memory, registers, transposed):
    """CuTe counts bits, along the rows whose addresses the lanes give."""
    name = f"{name}.x{count}{'.trans' * transposed}"
    given = of_cute(f"{name} {memory}")[:, 0] // 128  # row of all matrices, by the lane that gives its address
    assert np.array_equal(given[layouts.address_lanes(count)], np.arange(8 * count).reshape(count, 8))
    held = of_cute(f"{name} {registers}")[:, ::16] // 16  # 16-bit elements
    for matrix in range(count):
        places = held[:, 2 * matrix :][:, :2] - 64 * matrix
        assert same(layouts.matrix_8x8(transposed=transposed), places // 8, places % 8)


@pytest.mark.parametrize("exchanged", [(0, 1), (2, 4), (1, 7)])
def test_a_wrong_layout_is_noticed(exchanged):
    """Two elements of the fragment exchange their places, in all lanes; or two lanes do."""
    right = list(range(8))
    wrong = list(right)
    for a, b in (exchanged, exchanged[::-1]):
        wrong[a] = right[b]
    for faulty in (lambda part: part[:, wrong], lambda part: part[wrong + list(range(8, 32))]):
        planted = tuple(faulty(part) for part in layouts.mma_a())
        assert not same(planted, *from_owners((16, 16), 8, owner_in_a))
        assert not same(planted, *cute_positions("m16n8k16 A", 16))


def test_layouts_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        layouts.mma_c()[0][0, 0] = 1


def test_swizzle_is_the_manuals_figure():
    """In rows of the swizzle's width, chunk c of row r lies at place c ^ (r * width // 128 % chunks of a row)."""
    for width in MODES[1:]:
        row, chunk = np.arange(64)[:, None], np.arange(width // 16)
        place = row * width + 16 * (chunk ^ row * width // 128 % (width // 16))
        for start in (0, 1024, 0x2400):
            assert np.array_equal(layouts.swizzle(width, start + row * width + 16 * chunk), start + place)


def test_swizzle_is_cutes():
    plain = 16 * np.arange(128)
    for width in MODES[1:]:
        for dtype in (np.int64, np.uint32):
            swizzled = layouts.swizzle(width, plain.astype(dtype))
            assert swizzled.dtype == dtype and swizzled.tolist() == CUTE[f"swizzle {width}"]
        assert layouts.swizzle(width, 0x7C7) == CUTE[f"swizzle {width}"][0x7C] + 7  # the low bits stay
    assert layouts.swizzle(0, 0x7C7) == 0x7C7
    with pytest.raises(ValueError, match="16"):
        layouts.swizzle(16, 0)


@pytest.mark.parametrize("width", MODES)
@pytest.mark.parametrize("major", ["K", "MN"])
def test_operands_lie_where_cute_finds_them(major, width):
    for case in CUTE[f"{major}-major {width}"]:
        descriptor = layouts.decode_descriptor(int(case["descriptor"], 16))
        assert descriptor.swizzle == width
        rows, transposed = {"K": (32, False), "MN": (128, True)}[major]
        addresses = layouts.operand_addresses(descriptor, rows, 32, transposed)
        assert addresses.dtype == np.int64 and addresses.shape == ((16, 16) if transposed else (32, 2))
        assert addresses.ravel().tolist() == case["addresses"]
        for wrong in ({"stride_byte_offset": 2048 + 16}, {"start_address": 0}, {"swizzle": 64 if width != 64 else 128}):
            other = layouts.operand_addresses(descriptor._replace(**wrong), rows, 32, transposed)
            assert other.ravel().tolist() != case["addresses"]


@pytest.mark.parametrize("rows", [16, 64, 256])
@pytest.mark.parametrize("constant", [0x4000004000000000, 0x4000004000010000])
def test_a_tile_with_rows_of_128_bytes(constant, rows):
    """The descriptors of Triton and of the CUDA scan: the start address moves by 32 bytes from step to step."""
    at = 0x1C000
    memory = np.full(0x20000 // 16 + rows * 8, -1)
    row, chunk = np.arange(rows)[:, None], np.arange(8)
    memory[at // 16 + row * 8 + (chunk ^ row % 8)] = row * 8 + chunk
    for step in range(4):
        descriptor = layouts.decode_descriptor(constant + (at >> 4) + 2 * step)
        assert descriptor == (at + 32 * step, constant >> 12 & 16, 1024, 0, 128)
        found = memory[layouts.operand_addresses(descriptor, rows, 32) // 16]
        assert np.array_equal(found, row * 8 + 2 * step + np.arange(2))


def test_descriptor_fields():
    fields = 0x3FFF, 0x3FFE << 16, 0x2AAA << 32, 5 << 49, 2 << 62
    assert layouts.decode_descriptor(sum(fields)) == (0x3FFF0, 0x3FFE0, 0x2AAA0, 5, 64)
    assert layouts.decode_descriptor(np.uint64(3 << 62)) == (0, 0, 0, 0, 32)
    for bit in (14, 15, 30, 31, 46, 47, 48, *range(52, 62)):
        with pytest.raises(ValueError, match="must be zero"):
            layouts.decode_descriptor(1 << bit)
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64 bits"):
            layouts.decode_descriptor(value)


def test_what_is_not_covered_is_said():
    descriptor = layouts.decode_descriptor(0xC000004000010000)  # 32 bytes
    with pytest.raises(NotImplementedError, match="base offset"):
        layouts.operand_addresses(descriptor._replace(base_offset=1), 64, 32)
    with pytest.raises(ValueError, match="do not fit"):
        layouts.operand_addresses(descriptor, 64, 64)
    with pytest.raises(ValueError, match="eights"):
        layouts.operand_addresses(descriptor, 12, 32)
    with pytest.raises(ValueError, match="multiple of 8"):
        layouts.wgmma_d(12)
    with pytest.raises(ValueError, match="K 8 or 16"):
        layouts.mma_a(32)
    with pytest.raises(ValueError, match="1, 2 or 4"):
        layouts.address_lanes(3)


@pytest.mark.skipif("CUTE_INCLUDE" not in os.environ, reason="CUTE_INCLUDE does not name CUTLASS's folder of headers")
def test_the_table_is_what_cute_says(tmp_path):
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = [os.environ["CUTE_INCLUDE"], cuda / "include", cuda / "include" / "cccl"]
    program, written = tmp_path / "layouts", tmp_path / "table.json"
    includes = [f"-I{folder}" for folder in folders]
    subprocess.run(["g++", "-std=c++17", "-w", *includes, TABLE.with_suffix(".cpp"), "-o", program], check=True)
    subprocess.run([program, written], check=True, capture_output=True)
    assert json.loads(written.read_text()) == CUTE
