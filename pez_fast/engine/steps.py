"""The loop over steps, plain: algorithm 1 for one set of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pez_fast.optimizer import PEZ

Encode = Callable[[Tensor], Tensor]  # (R, L, d) token embeddings -> (R, D) features
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # features -> loss, score (R,)


class RowObjective(Protocol):
    """An objective whose rows do not depend on one another."""

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]: ...

    def rows(self, rows: Tensor) -> RowObjective:
        """The same for some of its rows."""
        ...


class Step(NamedTuple):
    """The projected prompts after `number` updates, and their scores."""

    number: int
    ids: Tensor  # (R, L)
    score: Tensor  # (R,)


def pez_steps(opt: PEZ, encode: Encode, objective: Objective, count: int) -> Iterator[Step]:
    """Algorithm 1 of Wen et al. 2023: yields the projection before each of `count` updates and after the last.

    The scores and the loss come from one pass of the tower.
    """
    for number in range(count + 1):
        last = number == count
        with torch.set_grad_enabled(not last):
            hard, ids = opt.project()
            loss, score = objective(encode(hard))
        yield Step(number, ids, score)
        if not last:
            loss.backward()
            opt.step()
            opt.zero_grad()
