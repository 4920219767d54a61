"""What differs between devices: the one place above the kernels that asks which one it is.

A device that is not known here (MPS, XPU, …) is treated as one whose host waits for it and whose abilities are unknown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pez_fast._shared.linear import bfloat16_is_native


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_from(name: str | torch.device | None) -> torch.device:
    """The device that a user names; `default_device()` for None.

    Raises:
        ValueError: no device of torch has this name, or it is not here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a device of torch, such as cuda or cpu; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} cannot be used: torch finds no CUDA device here")
    return device


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on one that does not say it, that of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def prompts_scored_at_once(device: torch.device) -> int:
    """Prompts that a model scores at once without a gradient; a CPU is fastest where they stay in its caches."""
    return 4096 if device.type == "cuda" else 128


def call_cost(device: torch.device) -> float:
    """What running a language model once more costs, as weights times tokens that take as long."""
    return 2e12 if device.type == "cuda" else 3e7


def tokens_at_once(device: torch.device) -> int:
    """Tokens that a language model reads in one call."""
    return 1 << 18 if device.type == "cuda" else 1 << 13


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself, and faster than float32."""
    if device.type == "cuda":  # a CUDA device that is not here is that of another machine, and new
        return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bfloat16_is_native()


def reading_waits(x: Tensor) -> bool:
    """Whether the host waits for the device where it reads a value of x, so that a step must not read one."""
    return x.device.type != "cpu"


def graphs_are_possible(device: torch.device) -> bool:
    """Whether steps can be captured as CUDA graphs."""
    return device.type == "cuda"


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def fetch(values: Sequence[Tensor]) -> list[list]:
    """Vectors of one dtype as lists, by one copy from the device."""
    joined = torch.cat(list(values)).detach()
    if joined.device.type == "cuda":
        pinned = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
        pinned.copy_(joined, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
        joined = pinned
    return [part.tolist() for part in joined.split([len(v) for v in values])]


def out_of_memory(error: Exception) -> bool:
    """Whether this is what torch raises when memory is used up, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        type(error) is RuntimeError and "can't allocate memory" in str(error)
    )
