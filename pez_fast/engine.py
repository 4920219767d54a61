"""The loop over steps, for a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable

Encode = Callable[[Tensor], Tensor]  # (R, L, d) token embeddings -> (R, D) features
Objective = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # features, step -> loss, score (R,)

_PATIENCE_EVERY = 8  # steps between looks at whether all are finished: each waits for the device


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
            loss, score = objective(encode(hard), number)
        yield Step(number, ids, score)
        if not last:
            loss.backward()
            opt.step()
            opt.zero_grad()


@dataclass
class Search:
    """The state of a search over R prompts; a callback sees it between steps.

    Attributes:
        number: updates made so far, `count` those asked for.
        best_ids: (R, L), best_score: (R,): the best projection of each prompt so far.
        steps: (R,): the updates that each prompt has had before it was finished.
    """

    number: int
    count: int
    best_ids: Tensor
    best_score: Tensor
    steps: Tensor
    scores: list[Tensor]
    stopped: list[str]

    @property
    def history(self) -> Tensor:
        """(R, number + 1) scores of the projections."""
        return torch.stack(self.scores, 1).cpu()


def search(table: TokenTable, start: Tensor, encode: Encode, objective: Objective, count: int, lr: float, weight_decay: float,
           patience: int | None = None, every: int = 50, callback: Callable[[Search], object] | None = None,
           impl: str = "auto") -> Search:  # fmt: skip
    """Optimise prompts that begin at the tokens `start` (R, L); each keeps its own best.

    A prompt that has not improved for `patience` steps is finished: its best is not touched any more, so that it does not
    depend on how long the others go on. `callback` is called every so many steps; if it returns True, or at Ctrl-C, the
    search ends with what it has.
    """
    wide = torch.promote_types(table.dtype, torch.float32)
    opt = PEZ(table.weight[start].to(wide), table, lr=lr, weight_decay=weight_decay, impl=impl)
    rows = len(start)
    lowest = torch.full((rows,), -torch.inf, dtype=wide, device=start.device)
    state = Search(0, count, start.clone(), lowest, torch.zeros(rows, dtype=torch.int64, device=start.device), [], ["steps"] * rows)
    improved = torch.zeros_like(state.steps)
    active = torch.ones(rows, dtype=torch.bool, device=start.device)
    ended = "interrupt"
    try:
        for step in pez_steps(opt, encode, objective, count):
            better = active & (step.score > state.best_score)
            state.best_score = torch.where(better, step.score, state.best_score)
            state.best_ids = torch.where(better[:, None], step.ids, state.best_ids)
            state.steps = torch.where(active, step.number, state.steps)
            state.scores.append(step.score)
            state.number = step.number
            if patience is not None:
                improved = torch.where(better, step.number, improved)
                active = active & (step.number - improved < patience)
            looked = step.number % every == 0 or step.number == count
            if looked and callback is not None and callback(state) is True:
                ended = "callback"
                break
            if patience is not None and step.number % _PATIENCE_EVERY == 0 and not active.any():
                break
        else:
            ended = "steps"
    except KeyboardInterrupt:
        if not state.scores:
            raise
    going = active.tolist()
    if not any(going):
        ended = "patience"
    state.stopped = [ended if g else "patience" for g in going]
    return state
