"""What can be used here, and why the rest cannot."""

from __future__ import annotations

import platform

import torch

from pez_fast import ops
from pez_fast.version import __version__


def info(device: str | torch.device | None = None) -> dict:
    """Which implementations are usable on a device (default: CUDA if there is one, else the CPU).

    Returns:
        A dict of plain values: versions, the device, the CPU's instructions that are made use of (None without the C++
        extension), what "auto" takes for each operation, for each implementation True or the reason why it cannot be used,
        and why "auto" passes over some that can.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return {
        "pez_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads",
        "instruction_set": ops.instruction_set(),
        "auto": {operation: ops.choose("auto", device) for operation in ops.OPERATIONS},
        "implementations": {name: i.unusable(device.type) or True for name, i in ops.IMPLEMENTATIONS.items()},
        "passed_over": {
            name: i.passed_over(device.type)
            for name, i in ops.IMPLEMENTATIONS.items()
            if not i.unusable(device.type) and i.passed_over(device.type)
        },
    }
