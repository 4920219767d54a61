"""Prompts that begin together: what was asked for, and what has been found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pez_fast.engine.protocols import Method, Objective


@dataclass(frozen=True)
class Stage:
    """A part of a search: a method, the number of its steps, and how many different prompts are kept of each, the best."""

    method: Method
    num_steps: int
    top_k: int = 1


@dataclass(frozen=True)
class Request:
    """Targets to learn prompts for.

    Attributes:
        keys: one for each of the T targets, whatever the caller knows them by.
        init_ids: (R, L) tokens that the prompts begin at, R / T prompts for each target, one target's behind another's.
        objective: of these R rows.
    """

    keys: tuple[Any, ...]
    init_ids: Tensor
    objective: Objective


class TensorState(dict[str, Tensor]):
    """A method's state as named tensors, in which each prompt has a row."""

    def select(self, rows: Tensor) -> TensorState:
        return TensorState({name: value[rows.to(value.device)] for name, value in self.items()})

    def join(self, other: TensorState) -> TensorState:
        return TensorState({name: torch.cat([value, other[name]]) for name, value in self.items()})


class SearchState:
    """The prompts of one request in one stage: the best that each has met, and which are still learned.

    Attributes:
        request, stage: what began.
        previous: the same targets in the stage before.
        step: evaluations made; all are made at `num_steps + 1`. `step_device`: the same where a step on the device reads it.
        best_ids: (R, K, L), -1 where there are none yet, best_score: (R, K): the best different prompts, in no order.
        steps: (R,): the updates that each prompt has had before it was finished.
        scores: (R, num_steps + 1): of the evaluations so far.
        stop_reason: why each prompt ended; empty while it has not.
        rows: (A,): the prompts that are still learned, to which `objective`, `improved` and `active` belong.
    """

    def __init__(
        self,
        request: Request,
        stage: Stage,
        dtype: torch.dtype,
        patience: int | None = None,
        previous: SearchState | None = None,
    ) -> None:
        self.request, self.stage, self.patience, self.previous = request, stage, patience, previous
        (r, length), device = request.init_ids.shape, request.init_ids.device
        self.step = 0
        self.step_device = torch.zeros((), dtype=torch.int64, device=device)
        self.best_ids = torch.full((r, stage.top_k, length), -1, dtype=torch.int64, device=device)
        self.best_score = torch.full((r, stage.top_k), -torch.inf, dtype=dtype, device=device)
        self.steps = torch.zeros(r, dtype=torch.int64, device=device)
        self.scores = torch.full((r, stage.num_steps + 1), torch.nan, dtype=dtype, device=device)
        self.stop_reason = [""] * r
        self.rows = torch.arange(r, device=device)
        self.objective = request.objective
        self.improved = torch.zeros_like(self.rows)
        self.active = torch.ones_like(self.rows, dtype=torch.bool)

    @property
    def steps_left(self) -> int:
        """Evaluations to be made."""
        return self.stage.num_steps + 1 - self.step

    @property
    def updates(self) -> int:
        """That are made; all, where the prompts have ended."""
        return self.stage.num_steps if self.finished else max(0, self.step - 1)

    @property
    def finished(self) -> bool:
        return all(self.stop_reason)

    @property
    def chain(self) -> list[SearchState]:
        """The stages that these targets have been in, the first one first."""
        return [*(self.previous.chain if self.previous is not None else ()), self]

    @property
    def history(self) -> Tensor:
        """(R, evaluations made) scores."""
        return self.scores[:, : self.step].cpu()

    def best_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """ids (T, L) and score (T,) of each target's best prompt so far, and the row (T,) that met it."""
        targets, keep = len(self.request.keys), self.best_score.shape[1]
        score, place = self.best_score.view(targets, -1).max(1)
        ids = self.best_ids.view(targets, -1, self.best_ids.shape[-1])
        target = torch.arange(targets, device=ids.device)
        return ids[target, place], score, target * (len(self.best_ids) // targets) + place // keep

    def next(self, stage: Stage) -> SearchState:
        """The same targets in another stage, which begins at the best prompt of each."""
        ids, _, rows = self.best_rows()
        ids = torch.where(ids < 0, self.request.init_ids[rows], ids)  # of a target without a finite score
        request = Request(self.request.keys, ids, self.request.objective.select(rows))
        return SearchState(request, stage, self.best_score.dtype, self.patience, self)

    def record(self, ids: Tensor, score: Tensor) -> None:
        """Keep prompts ids (A, L) with scores (A,) that are better than the worst that is kept, and different from all."""
        rows, complete, at = self.rows, len(self.rows) == len(self.steps), self.step_device
        kept_ids, kept = (self.best_ids, self.best_score) if complete else (self.best_ids[rows], self.best_score[rows])
        worst, place = kept.min(1, keepdim=True)
        better = score[:, None] > worst
        if complete:
            self.scores.index_copy_(1, at.view(1), score[:, None])
        else:
            self.scores.index_put_((rows, at.expand(len(rows))), score)
        if self.patience is not None:
            better &= self.active[:, None]
            self.improved.copy_(torch.where(self.active & (score > kept.max(1).values), at, self.improved))
            self.steps.index_copy_(0, rows, torch.where(self.active, at, self.steps[rows]))
            self.active.logical_and_(at - self.improved < self.patience)
        self.step_device += 1
        if not better.is_cuda and not better.any():  # most steps; on a GPU to ask would be to wait
            return
        if kept.shape[1] > 1:
            better &= (kept_ids != ids[:, None]).any(-1).all(-1, keepdim=True)
        places = place[:, :, None].expand(-1, -1, ids.shape[1])
        chosen = torch.where(better[:, :, None], ids[:, None], kept_ids.gather(1, places))
        kept.scatter_(1, place, torch.where(better, score[:, None], worst))
        kept_ids.scatter_(1, places, chosen)
        if not complete:
            self.best_score.index_copy_(0, rows, kept)
            self.best_ids.index_copy_(0, rows, kept_ids)

    def end(self, active: Sequence[bool], reason: str | None = None) -> None:
        """Prompts that are not active have run out of patience; the others end where there is a reason."""
        if self.patience is None:
            self.steps.fill_(max(0, self.step - 1))
        for row, goes_on in zip(self.rows.tolist(), active, strict=True):
            self.stop_reason[row] = "patience" if not goes_on else reason or ""

    def select(self, rows: Tensor) -> None:
        """Learn only these of the prompts further: rows (A',) of `rows`."""
        if len(rows) < len(self.rows):
            self.objective = self.objective.select(rows)
            self.rows, self.improved, self.active = self.rows[rows], self.improved[rows], self.active[rows]


OnProgress = Callable[[Sequence[SearchState]], object]  # True ends the search


def fetch(values: Sequence[Tensor]) -> list[list]:
    """Vectors of one dtype as lists, by one copy from the device."""
    joined = torch.cat(list(values)).detach()
    if joined.is_cuda:
        pinned = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
        pinned.copy_(joined, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
        joined = pinned
    return [part.tolist() for part in joined.split([len(v) for v in values])]
