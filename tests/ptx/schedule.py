"""The adversary: which warp runs next and for how long, when asynchronous work completes, who goes first."""

from __future__ import annotations

import random
from typing import Any, TypeVar

T = TypeVar("T")
STYLES = ("even", "late", "starving", "eager")


class Schedule:
    """Drawn from a seed; the same seed gives the same run.

    even: any warp, for a few instructions; some asynchronous work completes early.
    late: a warp runs until it must wait, and nothing asynchronous completes before no warp can go on.
    starving: the warps have an order of precedence, which changes now and then; nothing completes early.
    eager: everything asynchronous completes as soon as it can, and warps change after a few instructions.
    """

    def __init__(self, seed: int, style: str | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.style = style or STYLES[seed % len(STYLES)]
        if self.style not in STYLES:
            raise ValueError(f"style is {self.style!r}, but it must be one of {', '.join(STYLES)}")
        self.precedence: dict[int, float] = {}
        self.salt = self.random.getrandbits(32)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choice(self, items: list[T]) -> T:
        return items[self.random.randrange(len(items))] if len(items) > 1 else items[0]

    def shuffle(self, items: list) -> None:
        self.random.shuffle(items)

    def pick(self, warps: list[Any]) -> Any:
        """The warp that runs next."""
        if self.style != "starving" or len(warps) == 1:
            return self.choice(warps)
        if self.chance(0.02):
            self.precedence.clear()
        return max(warps, key=lambda w: self.precedence.setdefault(id(w), self.random.random()))

    def budget(self) -> int:
        """How many instructions it may execute."""
        if self.style == "late":
            return 10_000
        if self.style == "starving":
            return 400
        return 1 + int(self.random.expovariate(1 / (60 if self.style == "even" else 15)))

    def group(self, groups: list[Any]) -> Any:
        """Which lanes of a warp that has diverged go on; mostly those that are furthest behind."""
        if self.style in ("even", "eager") and self.chance(0.05):
            return self.choice(groups)
        return min(groups, key=lambda one: (-len(one.stack), one.pc))

    def completes_early(self) -> bool:
        """Whether some asynchronous work completes now, though warps can go on."""
        return self.style == "eager" or (self.style == "even" and self.chance(0.1))

    def gives_up(self) -> bool:
        """Whether a wait that may give up does."""
        return self.style in ("even", "eager") and self.chance(0.02)

    def resident(self, clusters: int) -> int:
        """How many of a grid's clusters run at the same time."""
        return clusters if self.style == "late" else self.random.randint(1, max(1, clusters))

    def leader(self, members: int) -> int:
        """The lane that elect.sync chooses among members: always the same of the same members."""
        lanes = [lane for lane in range(32) if members >> lane & 1]
        return lanes[(members * 2654435761 + self.salt) % len(lanes)]
