"""Which implementations can run here, and why the others cannot."""

from __future__ import annotations

import platform

import torch

from pez_fast import ops
from pez_fast._shared.devices import default_device
from pez_fast.version import __version__


def info(device: str | torch.device | None = None) -> dict:
    """Which implementations are usable on a device (default: CUDA if there is one, else the CPU).

    Returns:
        A dict of plain values: the versions; the device; the CPU instruction set in use (None without the C++
        extension); what "auto" takes for each operation; for each implementation True or the reason why it cannot be
        used; and under "auto_skipped" the usable implementations that "auto" skips, with the reason.
    """
    device = default_device() if device is None else torch.device(device)
    return {
        "pez_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _name(device),
        "instruction_set": ops.instruction_set(),
        "auto": {operation: ops.resolve_impl("auto", device) for operation in ops.OPERATIONS},
        "implementations": {name: i.unavailable_reason(device) or True for name, i in ops.IMPLEMENTATIONS.items()},
        "auto_skipped": {
            name: i.auto_skip_reason(device)
            for name, i in ops.IMPLEMENTATIONS.items()
            if not i.unavailable_reason(device) and i.auto_skip_reason(device)
        },
    }


def _name(device: torch.device) -> str:
    """The vendor's name of the device if torch knows it, else its type; for the CPU also the number of threads."""
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    try:
        return torch.get_device_module(device).get_device_name(device)
    # This kind of device has no names, or there is no such device.
    except (AttributeError, AssertionError, RuntimeError):
        return device.type
