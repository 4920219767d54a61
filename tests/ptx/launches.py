"""The record of a kernel launch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Launch:
    """One launch, as a launcher asked for it. `arguments` holds the bytes of every parameter of the kernel, in order.

    `kernel` is the mangled name, as the PTX's .entry has it. `cluster` is what the launch itself asks for; what the
    kernel requires (.reqnctapercluster) stands in the PTX."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0  # dynamic shared memory; the kernel's static shared memory comes on top
    overlaps: bool = False  # programmatic stream serialization
    cluster: tuple[int, int, int] | None = None
    stream: int = 0
    arguments: list[bytes] = field(default_factory=list)
