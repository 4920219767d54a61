"""The loop over steps, for a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable

Encode = Callable[[Tensor], Tensor]  # (R, L, d) token embeddings -> (R, D) features
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # features -> loss, score (R,)

_PATIENCE_EVERY = 8  # steps between looks at which prompts are finished: each waits for the device
_WARM = 3  # steps made before one is captured


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
            update(opt, loss)


def update(opt: PEZ, loss: Tensor) -> None:
    """One update of the soft prompts."""
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
        scores: (R, count + 1): of the projections, up to `number`.
        stopped: why each prompt ended.
    """

    number: int
    count: int
    best_ids: Tensor
    best_score: Tensor
    steps: Tensor
    scores: Tensor
    stopped: list[str]

    @property
    def history(self) -> Tensor:
        """(R, number + 1) scores of the projections."""
        return self.scores[:, : self.number + 1].cpu()


class _Batch:
    """The prompts that are still learned, every step of theirs on the device: nothing in a step waits for it."""

    def __init__(self, state: Search, opt: PEZ, encode: Encode, objective: RowObjective, rows: Tensor, patience: int | None) -> None:
        self.state, self.opt, self.encode, self.objective, self.rows = state, opt, encode, objective, rows
        self.patience = patience
        self.at = torch.zeros((), dtype=torch.int64, device=rows.device)  # updates made
        self.improved = torch.zeros_like(rows)
        self.active = torch.ones_like(rows, dtype=torch.bool)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.made = 0

    def step(self, last: bool = False) -> None:
        """One projection, kept where it is better; and, but for the last, one update."""
        with torch.set_grad_enabled(not last):
            hard, ids = self.opt.project()
            loss, score = self.objective(self.encode(hard))
        state, rows = self.state, self.rows
        best = state.best_score[rows]
        better = self.active & (score > best)
        state.best_score.index_copy_(0, rows, torch.where(better, score, best))
        state.best_ids.index_copy_(0, rows, torch.where(better[:, None], ids, state.best_ids[rows]))
        state.steps.index_copy_(0, rows, torch.where(self.active, self.at, state.steps[rows]))
        state.scores.index_put_((rows, self.at.expand(len(rows))), score)
        if self.patience is not None:
            self.improved.copy_(torch.where(better, self.at, self.improved))
            self.active.logical_and_(self.at - self.improved < self.patience)
        if not last:
            update(self.opt, loss)
            self.at += 1

    def advance(self, until: int) -> None:
        """Steps up to the projection after `until` updates, the updates behind it included (but for the last of all)."""
        capture = self.rows.is_cuda and ops.capturable(self.opt.impl, self.rows.device)
        while self.state.number < until:
            if self.state.number + 1 == self.state.count:
                self.step(last=True)
            elif capture and self.made >= _WARM:
                self._replay()
            else:
                self.step()
                self.made += 1
            self.state.number += 1

    def _replay(self) -> None:
        """The step as a CUDA graph, captured when it is first wanted."""
        if self.graph is None:
            self.opt.zero_grad()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
        self.graph.replay()

    def without_finished(self, active: list[bool]) -> _Batch:
        """The prompts that go on, in a batch of their own."""
        keep = torch.tensor(active, device=self.rows.device).nonzero()[:, 0]
        opt = self.opt.rows(keep)
        batch = _Batch(self.state, opt, self.encode, self.objective.rows(keep), self.rows[keep], self.patience)
        batch.at.copy_(self.at)
        batch.improved.copy_(self.improved[keep])
        return batch


def search(table: TokenTable, start: Tensor, encode: Encode, objective: RowObjective, count: int, lr: float, weight_decay: float,
           patience: int | None = None, every: int = 50, callback: Callable[[Search], object] | None = None,
           impl: str = "auto") -> Search:  # fmt: skip
    """Optimise prompts that begin at the tokens `start` (R, L); each keeps its own best.

    A prompt that has not improved for `patience` steps is finished: its best is not touched any more, so that it does not
    depend on how long the others go on, and when half of a batch is finished, the batch goes on without it. `callback` is
    called every so many steps; if it returns True, or at Ctrl-C, the search ends with what it has. On a GPU a step is
    captured as a CUDA graph where the implementation of the projection can be.
    """
    wide = torch.promote_types(table.dtype, torch.float32)
    device, r = start.device, len(start)
    opt = PEZ(table.weight[start].to(wide), table, lr=lr, weight_decay=weight_decay, impl=impl, capturable=device.type == "cuda")
    state = Search(
        -1, count, start.clone(), torch.full((r,), -torch.inf, dtype=wide, device=device), torch.zeros(r, dtype=torch.int64, device=device),
        torch.full((r, count + 1), torch.nan, dtype=wide, device=device), ["steps"] * r,
    )  # fmt: skip
    batch = _Batch(state, opt, encode, objective, torch.arange(r, device=device), patience)
    finished = torch.zeros(r, dtype=torch.bool)
    ended = "steps"
    try:
        while state.number < count:
            looks = ([every] if callback is not None else []) + ([_PATIENCE_EVERY] if patience is not None else [])
            batch.advance(min([count, *((state.number // n + 1) * n for n in looks)]))
            if callback is not None and (state.number % every == 0 or state.number == count) and callback(state) is True:
                ended = "callback"
                break
            if patience is not None:
                active = batch.active.tolist()
                finished[batch.rows.cpu()] = ~torch.tensor(active)
                if not any(active):
                    break
                if 2 * sum(active) <= len(active) and state.number < count:
                    batch = batch.without_finished(active)
    except KeyboardInterrupt:
        if state.number < 0:
            raise
        ended = "interrupt"
    if patience is not None:
        finished[batch.rows.cpu()] = ~batch.active.cpu()
    state.stopped = ["patience" if f else ended for f in finished.tolist()]
    return state
