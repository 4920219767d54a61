"""Requests, and what a search has found for them in a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pez_fast._shared.devices import reading_waits
from pez_fast.engine.protocols import Method, Objective


@dataclass(frozen=True)
class Stage:
    """A part of a search.

    Attributes:
        method: the method that moves the prompts.
        num_steps: the number of updates.
        top_k: how many different prompts are kept for each row, the best ones.
    """

    method: Method
    num_steps: int
    top_k: int = 1


@dataclass(frozen=True)
class Request:
    """Targets that begin together.

    Attributes:
        keys: the caller's names of the T targets.
        init_ids: (R, L) int64 tokens that the prompts begin at; each target has R / T consecutive rows.
        objective: an objective with a row for each of the R rows.
        seed: the seed of the method's random draws and of a `StochasticModel`'s.
    """

    keys: tuple[Any, ...]
    init_ids: Tensor
    objective: Objective
    seed: int = 0


class TensorState(dict[str, Tensor]):
    """A method's state as named tensors with a row for each prompt."""

    def select(self, rows: Tensor) -> TensorState:
        """Returns the state of some prompts, rows (R',) int64."""
        return TensorState({name: value[rows.to(value.device)] for name, value in self.items()})

    def join(self, other: TensorState) -> TensorState:
        """Returns the state of these prompts, followed by those of `other`."""
        return TensorState({name: torch.cat([value, other[name]]) for name, value in self.items()})


class SearchState:
    """The prompts of one request in one stage: the best ones that each row has met, and which rows are still learned.

    Attributes:
        request, stage: the request and the stage.
        previous: the search of the same targets in the stage before, or None.
        step: evaluations made, `num_steps + 1` in the end.
        step_device: `step` as a tensor on the device.
        best_ids: (R, K, L) int64, the best different prompts, in no order; -1 where there are none yet.
        best_score: (R, K), their scores.
        steps: (R,) int64, the updates that each prompt had before it ended.
        scores: (R, num_steps + 1), the score of each evaluation; NaN where there is none.
        stop_reason: why each prompt ended; empty while it runs.
        rows: (A,) int64, the prompts that are still learned; `objective`, `improved` and `active` have a row for each.
        soft_prompts: (R, L, d), where each row's soft prompt ended, if the method keeps it; else None.
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
        self.soft_prompts: Tensor | None = None
        self.improved = torch.zeros_like(self.rows)
        self.active = torch.ones_like(self.rows, dtype=torch.bool)

    @property
    def steps_left(self) -> int:
        """The number of evaluations that are still to be made."""
        return self.stage.num_steps + 1 - self.step

    @property
    def updates(self) -> int:
        """The number of updates made; all updates of the stage if the prompts have ended."""
        return self.stage.num_steps if self.finished else max(0, self.step - 1)

    @property
    def finished(self) -> bool:
        """Whether all prompts have ended."""
        return all(self.stop_reason)

    @property
    def chain(self) -> list[SearchState]:
        """The searches of these targets, stage by stage, this one last."""
        return [*(self.previous.chain if self.previous is not None else ()), self]

    @property
    def history(self) -> Tensor:
        """The scores (R, evaluations made), on the CPU."""
        return self.scores[:, : self.step].cpu()

    def best_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns each target's best prompt so far: ids (T, L), score (T,), and the row (T,) that met it."""
        targets, top_k = len(self.request.keys), self.best_score.shape[1]
        score, place = self.best_score.view(targets, -1).max(1)
        ids = self.best_ids.view(targets, -1, self.best_ids.shape[-1])
        target = torch.arange(targets, device=ids.device)
        return ids[target, place], score, target * (len(self.best_ids) // targets) + place // top_k

    def next(self, stage: Stage) -> SearchState:
        """Returns the search of the same targets in another stage, which begins at the best prompt of each target."""
        ids, _, rows = self.best_rows()
        ids = torch.where(ids < 0, self.request.init_ids[rows], ids)  # a target without a finite score begins anew
        request = Request(self.request.keys, ids, self.request.objective.select(rows), self.request.seed)
        return SearchState(request, stage, self.best_score.dtype, self.patience, self)

    def record(self, ids: Tensor, score: Tensor) -> None:
        """Records an evaluation.

        A prompt replaces the worst kept prompt of its row if its score is better and it differs from all kept ones.

        Args:
            ids: (A, L) int64, the prompts of the rows that are still learned.
            score: (A,), their scores; NaN where a prompt was not scored.
        """
        rows, complete, at = self.rows, len(self.rows) == len(self.steps), self.step_device
        score = score.to(self.scores.dtype)  # that of a tower in another dtype
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
        if (
            not reading_waits(better) and not better.any()
        ):  # the usual case; on a GPU this check would wait for the device
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
        """Ends the prompts that are not active, by patience, and the others if there is a reason."""
        if self.patience is None:
            self.steps.fill_(max(0, self.step - 1))
        for row, is_active in zip(self.rows.tolist(), active, strict=True):
            self.stop_reason[row] = "patience" if not is_active else reason or ""

    def keep_soft(self, rows: Tensor, soft: Tensor) -> None:
        """Keeps the soft prompts (A', L, d) of rows that end; `rows` (A',) int64 index `self.rows`."""
        if self.soft_prompts is None:
            self.soft_prompts = soft.new_zeros(len(self.steps), *soft.shape[1:])
        self.soft_prompts[self.rows[rows]] = soft

    def select(self, rows: Tensor) -> None:
        """Keeps some of the prompts that are still learned; `rows` (A',) int64 index `self.rows`."""
        if len(rows) < len(self.rows):
            self.objective = self.objective.select(rows)
            self.rows, self.improved, self.active = self.rows[rows], self.improved[rows], self.active[rows]


OnProgress = Callable[[Sequence[SearchState]], object]  # True ends the search
