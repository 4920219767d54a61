"""Kernels in CUDA C++, compiled by nvcc with line numbers: right results, and faults that name the source's line."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ptx.errors import Deadlock, Divergence, MemoryFault, PoisonError, RaceError
from ptx_text import SCHEDULES, Fresh, Shape, always, execute

SOURCE = Path(__file__).parent / "ptx_kernels.cu"
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc compiles the kernels of this test")
BLOCK = Shape(block=128)
IN = np.random.default_rng(1).permutation(128).astype(np.int32) - 20
OUT = Fresh((128,), np.int32)


@cache
def compiled(architecture: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.ptx"
        options = ["-ptx", "-lineinfo", "-std=c++17", f"-arch=compute_{architecture}", "-o", str(out)]
        subprocess.run(["nvcc", *options, str(SOURCE)], check=True, capture_output=True, timeout=120)
        return out.read_text()


def named(kernel: str, architecture: str = "90") -> str:
    """The PTX, where this kernel is called main."""
    text = compiled(architecture)
    assert f".entry {kernel}(" in text
    return text.replace(f".entry {kernel}(", ".entry main(")


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_an_indexed_array(architecture: str) -> None:
    text = named("indexed", architecture)
    assert ".local" in text
    steps = np.random.default_rng(2).permutation(16).astype(np.int32)
    values = np.arange(16)[:, None] * 100 + np.arange(128)
    for i in range(16):
        values[steps[i]] += 1000 * i
    thread = np.arange(128)
    expected = sum(values[steps[(thread + i) % 16], thread] for i in range(0, 16, 3))
    always(text, [OUT, steps], expected, BLOCK)


def test_a_function_that_some_lanes_call() -> None:
    text = named("called")
    assert re.search(r"call\S* \(retval0\)|call\S*\s*\n?\s*\(retval0\)", text)
    x = IN.astype(np.float32)
    thread = np.arange(128)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(thread > 20, x * 2, x / thread.astype(np.float32))
    always(text, [Fresh((128,), np.float32), x], np.where(thread % 3, quotient, x).astype(np.float32), BLOCK)


def test_right_kernels() -> None:
    always(named("reversed"), [OUT, IN], IN[::-1], BLOCK)
    warps = IN.reshape(4, 32).sum(1)
    positive = 32 * int((warps > 0).sum())
    always(named("summed"), [OUT, IN], np.full(128, IN.sum() + positive), BLOCK)
    expected = (IN % 2 != 0).sum() + np.repeat((IN.reshape(4, 32) > 64).sum(1), 32) + 32
    always(named("counted"), [OUT, IN], expected, BLOCK)


def test_halves() -> None:
    x = (np.arange(64) / 8).astype(np.float16)
    expected = (x.astype(np.float64) ** 2 + 0.5).astype(np.float16)
    always(named("halves"), [Fresh((64,), np.float16), x], expected)


@pytest.mark.parametrize(
    ("kernel", "kinds", "lines"),
    [
        ("racing", (RaceError, PoisonError), ["values[threadIdx.x] = in", "no __syncthreads"]),
        ("beyond", (MemoryFault,), ["one too far"]),
        ("unset", (PoisonError,), ["the last one was never written"]),
        ("lonely", (Divergence,), ["half of the lanes are not there"]),
        ("stuck", (Deadlock,), ["the others are at another barrier"]),
    ],
)
def test_wrong_kernels_and_the_lines_of_their_source(kernel: str, kinds, lines: list[str]) -> None:
    source = SOURCE.read_text().splitlines()
    begin = next(i for i, line in enumerate(source) if f"void {kernel}(" in line)
    numbers = [next(i for i, line in enumerate(source) if i > begin and part in line) + 1 for part in lines]
    for seed, style in SCHEDULES:
        with pytest.raises(kinds) as caught:
            execute(named(kernel), [OUT, IN], BLOCK, seed, style)
        said = str(caught.value)
        assert any(re.search(rf"ptx_kernels\.cu:{number}\b", said) for number in numbers), said
