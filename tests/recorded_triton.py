"""Records the launches of the Triton implementation's searches and splices, without a GPU.

A child process runs the launchers on CPU tensors under a driver that compiles each kernel for the card of a request and
notes the launch instead of making it. A child is needed because the tests set TRITON_INTERPRET, under which Triton
compiles nothing. Triton keeps compiled kernels in its own cache (TRITON_CACHE_DIR).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from cards import HOPPER, Card
from ptx.launches import Launch
from torch import Tensor

SECONDS = 600  # after so long, the child is given up


@dataclass
class Search:
    """`nearest(x, weight, ids, prepare(weight, ids))`: x (N, d), weight (V, d), ids (K,) int64 ascending, or all rows.

    `scan` holds the fields of `tune.Scan`, or is None for the card's default.
    """

    x: Tensor
    weight: Tensor
    ids: Tensor | None = None
    scan: dict[str, int | bool] | None = None
    card: Card = HOPPER


@dataclass
class Splice:
    """`splice(template, hard, slots, owner)`: (B, S, d), (R, L, d), (L,) int64, (B,) int64."""

    template: Tensor
    hard: Tensor
    slots: Tensor
    owner: Tensor
    card: Card = HOPPER


@dataclass
class SpliceBackward:
    """`splice_backward(grad, slots, owner, prompts)`: (B, S, d), (L,) int64, (B,) int64, R."""

    grad: Tensor
    slots: Tensor
    owner: Tensor
    prompts: int
    card: Card = HOPPER


@dataclass(frozen=True)
class Array:
    """Where a tensor lies: its address, shape, strides in elements, and dtype."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Array:
        return cls(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def read(self, memory: Mapping[int, np.ndarray]) -> Tensor:
        """The tensor in `memory`, which maps the address of an allocation to its bytes (uint8); a copy."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        length = (last + 1) * self.dtype.itemsize
        for base, data in memory.items():
            if base <= self.address and self.address + length <= base + len(data):
                data = data[self.address - base :][:length].copy()
                return torch.from_numpy(data).view(self.dtype).as_strided(self.shape, self.strides).contiguous()
        raise ValueError(f"no allocation holds the {length} bytes at {self.address:#x}")


@dataclass(frozen=True)
class Allocation:
    """`size` bytes at `address`; `data` (size,) uint8 is what they hold, or None if nothing was ever written there.

    `name` is the first kernel argument that points there.
    """

    name: str
    address: int
    size: int
    data: np.ndarray | None


@dataclass
class RecordedLaunch:
    """A launch and the PTX of its kernel, with the kernel's arguments by the names in its Python source.

    `tensors` holds the arguments that are tensors or tensor descriptors, `values` the numbers, constexpr or not.
    """

    launch: Launch
    ptx: str
    tensors: dict[str, Array]
    values: dict[str, int | float]


@dataclass
class Recording:
    """The launches of one request, in order, and the memory that their arguments point to.

    No kernel ran, so `memory` is what it was before the first launch. `results` are the tensors that the call returned.
    """

    launches: list[RecordedLaunch] = field(default_factory=list)
    memory: list[Allocation] = field(default_factory=list)
    results: list[Array] = field(default_factory=list)


def record(requests: Sequence[Search | Splice | SpliceBackward]) -> list[Recording]:
    """Runs the requests in one child process; returns a recording of each."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PEZ_FAST_AUTOTUNE")}
    child = Path(__file__).with_name("triton_child.py")
    with tempfile.TemporaryDirectory() as folder:
        asked, made = Path(folder, "requests"), Path(folder, "recordings")
        asked.write_bytes(pickle.dumps(list(requests)))
        ended = subprocess.run(
            [sys.executable, str(child), str(asked), str(made)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if ended.returncode:
            raise RuntimeError(f"the launches cannot be recorded: {ended.stderr.strip() or ended.returncode}")
        return pickle.loads(made.read_bytes())
