"""Torch's threads, for the extension."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch


def threads() -> tuple[int, int]:
    """The address of torch_parallel_for, and how many threads it will use."""
    return _parallel_for(), torch.get_num_threads()


@cache
def _parallel_for() -> int:
    """From torch's stable C interface, the same for every torch from 2.10 on, so the build needs no torch."""
    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
    library = ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))
    return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p).value or 0
