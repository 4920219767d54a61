"""Prompts that begin together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pez_fast.config import LEARNING_RATE, WEIGHT_DECAY
from pez_fast.engine.steps import RowObjective
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class Settings:
    """How prompts are searched for.

    Attributes:
        count: updates.
        lr, weight_decay: of AdamW.
        patience: a prompt is finished after so many steps without improvement.
        keep: how many different projections of each prompt are kept, the best ones.
        impl: implementation of the projection.
    """

    count: int
    lr: float = LEARNING_RATE
    weight_decay: float = WEIGHT_DECAY
    patience: int | None = None
    keep: int = 1
    impl: str = "auto"


@dataclass(frozen=True)
class Part:
    """Targets that wait: any `names`, the tokens `start` (R, L) that their prompts begin at, R / T of them for each, and the
    objective of these rows."""

    names: tuple[Any, ...]
    start: Tensor
    objective: RowObjective

    def halves(self) -> list[Part]:
        """The same targets in two parts."""
        middle, each = (len(self.names) + 1) // 2, len(self.start) // len(self.names)
        rows = torch.arange(len(self.start), device=self.start.device).split(
            [middle * each, len(self.start) - middle * each]
        )
        names = self.names[:middle], self.names[middle:]
        return [Part(n, self.start[r], self.objective.rows(r)) for n, r in zip(names, rows, strict=True)]


class Cohort:
    """Prompts that begin together: what they have found, and the optimiser of those that are still learned.

    Attributes:
        part: what began.
        number: steps made, each a projection and the update after it; all are made at `count + 1`.
        best_ids: (R, K, L), -1 where there are none yet, best_score: (R, K): the best different projections, in no order.
        steps: (R,): the updates that each prompt has had before it was finished.
        scores: (R, count + 1): of the projections so far.
        stopped: why each prompt ended; empty while it has not.
        rows: (A,): the prompts that are still learned, to which all that follows belongs.
    """

    def __init__(self, part: Part, table: TokenTable, settings: Settings) -> None:
        self.part, self.settings = part, settings
        (r, length), device = part.start.shape, part.start.device
        wide = torch.promote_types(table.dtype, torch.float32)
        self.number = 0
        self.best_ids = torch.full((r, settings.keep, length), -1, dtype=torch.int64, device=device)
        self.best_score = torch.full((r, settings.keep), -torch.inf, dtype=wide, device=device)
        self.steps = torch.zeros(r, dtype=torch.int64, device=device)
        self.scores = torch.full((r, settings.count + 1), torch.nan, dtype=wide, device=device)
        self.stopped = [""] * r
        self.rows = torch.arange(r, device=device)
        self.opt = PEZ(
            table.weight[part.start].to(wide),
            table,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            impl=settings.impl,
            capturable=device.type == "cuda",
        )
        self.objective = part.objective
        self.at = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # as `number`, where a step on the device can read it
        self.improved = torch.zeros_like(self.rows)
        self.active = torch.ones_like(self.rows, dtype=torch.bool)

    @property
    def left(self) -> int:
        """Steps to be made."""
        return self.settings.count + 1 - self.number

    @property
    def history(self) -> Tensor:
        """(R, steps made) scores of the projections."""
        return self.scores[:, : self.number].cpu()

    def best(self) -> tuple[Tensor, Tensor]:
        """ids (R, L) and score (R,) of each prompt's best projection."""
        score, place = self.best_score.max(1)
        return self.best_ids[torch.arange(len(place), device=place.device), place], score

    def record(self, ids: Tensor, score: Tensor) -> None:
        """Keep projections (A, L) with scores (A,) that are better than the worst that is kept, and different from all."""
        rows, all_of_them, patience = self.rows, len(self.rows) == len(self.steps), self.settings.patience
        kept_ids, kept = (
            (self.best_ids, self.best_score) if all_of_them else (self.best_ids[rows], self.best_score[rows])
        )
        worst, place = kept.min(1, keepdim=True)
        better = score[:, None] > worst
        if all_of_them:
            self.scores.index_copy_(1, self.at.view(1), score[:, None])
        else:
            self.scores.index_put_((rows, self.at.expand(len(rows))), score)
        if patience is not None:
            better &= self.active[:, None]
            self.improved.copy_(torch.where(self.active & (score > kept.max(1).values), self.at, self.improved))
            self.steps.index_copy_(0, rows, torch.where(self.active, self.at, self.steps[rows]))
            self.active.logical_and_(self.at - self.improved < patience)
        if not better.is_cuda and not better.any():  # most steps; on a GPU to ask would be to wait
            return
        if kept.shape[1] > 1:
            better &= (kept_ids != ids[:, None]).any(-1).all(-1, keepdim=True)
        places = place[:, :, None].expand(-1, -1, ids.shape[1])
        chosen = torch.where(better[:, :, None], ids[:, None], kept_ids.gather(1, places))
        kept.scatter_(1, place, torch.where(better, score[:, None], worst))
        kept_ids.scatter_(1, places, chosen)
        if not all_of_them:
            self.best_score.index_copy_(0, rows, kept)
            self.best_ids.index_copy_(0, rows, kept_ids)

    def update(self) -> None:
        """One update of the soft prompts, by the gradients that they have."""
        self.opt.step()
        self.opt.prompts.grad = None
        self.at += 1

    def end(self, active: list[bool], why: str | None = None) -> None:
        """Note that those not active have run out of patience, and, where there is a reason, that the others end for it."""
        if self.settings.patience is None:
            self.steps.fill_(self.number - 1)
        for row, goes_on in zip(self.rows.tolist(), active, strict=True):
            self.stopped[row] = "patience" if not goes_on else why or ""

    def keep(self, active: list[bool]) -> None:
        """Learn only those prompts further."""
        rows = torch.tensor(active, device=self.rows.device).nonzero()[:, 0]
        self.opt, self.objective = self.opt.rows(rows), self.objective.rows(rows)
        self.rows, self.improved, self.active = self.rows[rows], self.improved[rows], self.active[rows]
