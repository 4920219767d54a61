"""How many prompts fit into memory at once."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.5  # of what is free
KEPT = 24  # values that a block keeps for the backward pass, for each position and dimension


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def prompts_at_once(device: torch.device, bytes_per_prompt: int) -> int:
    """How many prompts may be learned at once, at least 1."""
    return max(1, int(SHARE * free_bytes(device)) // max(1, bytes_per_prompt))


def transformer_bytes(blocks: int, positions: int, width: int, bytes_each: int) -> int:
    """An estimate for one prompt, forward and backward, through so many blocks over so many positions of so many dimensions."""
    return KEPT * blocks * positions * width * bytes_each


def out_of_memory(error: Exception) -> bool:
    """Whether this is what torch raises when memory is used up, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        type(error) is RuntimeError and "can't allocate memory" in str(error)
    )
