"""The cards that recorded launches are made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What the launchers, and Triton, ask of a GPU."""

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 4
    shared_bytes: int = 227 << 10  # that a block may use
    architecture: str | None = None  # of the CUDA kernels' PTX, "80" or "90"; None: the newest that the card runs


HOPPER, AMPERE, ADA = Card(), Card((8, 0), shared_bytes=163 << 10), Card((8, 9), shared_bytes=99 << 10)
