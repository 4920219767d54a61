"""Random draws that depend on a row's own seed and its own number of steps alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pez_fast.engine import TensorState

if TYPE_CHECKING:
    from typing_extensions import Self


class Draws:
    """Random integers for each step, in a sequence that depends on the seed alone.

    Args:
        seed: the seed of the sequence.
        width: the number of integers for a step.
        end: all integers are below it; the lowest is 0.
    """

    def __init__(self, seed: int, width: int, end: int) -> None:
        self._generator, self._width, self._end = torch.Generator().manual_seed(seed), width, end
        self._drawn: list[Tensor] = []

    def __getitem__(self, step: int) -> Tensor:
        """Returns the integers (width,) int64 of a step, on the CPU."""
        while len(self._drawn) <= step:
            self._drawn.append(torch.randint(self._end, (self._width,), generator=self._generator))
        return self._drawn[step]


@dataclass
class DrawnState:
    """The state of R prompts whose method draws random numbers.

    Attributes:
        tensors: a row for each prompt; "ids" (R, L) int64 are the prompts.
        seeds: for each prompt, the seed of its draws.
        steps: for each prompt, the number of updates that it has had.
        draws: the draws of each seed; prompts of the same seed share them.
    """

    tensors: TensorState
    seeds: list[int]
    steps: list[int]
    draws: dict[int, Draws]

    @property
    def drawn(self) -> list[Tensor]:
        """The draws (width,) int64 of each prompt's own step, on the CPU."""
        return [self.draws[seed][step] for seed, step in zip(self.seeds, self.steps, strict=True)]

    def move(self, ids: Tensor) -> None:
        """Sets the prompts ids (R, L) int64 of the next step."""
        self.tensors["ids"] = ids
        self.steps = [step + 1 for step in self.steps]

    def select(self, rows: Tensor) -> Self:
        """Returns the state of some prompts, rows (R',) int64."""
        kept = rows.tolist()
        seeds, steps = [self.seeds[row] for row in kept], [self.steps[row] for row in kept]
        draws = {seed: self.draws[seed] for seed in seeds}
        return replace(self, tensors=self.tensors.select(rows), seeds=seeds, steps=steps, draws=draws)

    def join(self, other: Self) -> Self:
        """Returns the state of these prompts, followed by those of `other`."""
        return replace(
            self,
            tensors=self.tensors.join(other.tensors),
            seeds=self.seeds + other.seeds,
            steps=self.steps + other.steps,
            draws={**other.draws, **self.draws},
        )
