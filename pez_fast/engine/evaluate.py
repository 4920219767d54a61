"""Scores and gradients of many prompts: in chunks that fit into memory, for all that share a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pez_fast.engine.memory import out_of_memory
from pez_fast.engine.protocols import Evaluation, Objective, Outputs
from pez_fast.table import TokenTable

# Prompts scored at once without a gradient: a CPU is fastest where they stay in its caches.
_SCORED_AT_ONCE = {"cpu": 128, "cuda": 4096}


@dataclass
class BatchLimit:
    """How many prompts are evaluated at once; halved where memory runs out, for as long as the search lasts.

    Attributes:
        rows: with a gradient. scored: without.
    """

    rows: int
    scored: int

    @classmethod
    def of(cls, rows: int, device: torch.device) -> BatchLimit:
        return cls(rows, min(rows, _SCORED_AT_ONCE.get(device.type, 128)))

    def size(self, gradient: bool) -> int:
        return self.rows if gradient else self.scored

    def halve(self, rows: int, gradient: bool) -> bool:
        """After `rows` prompts did not fit: half of that from now on. False where one prompt alone did not fit."""
        half = (rows + 1) // 2
        self.scored = min(self.scored, half)
        if gradient:
            self.rows = half
        return rows > 1


class Joined:
    """The objectives of requests that share a batch: `parts` and the number of rows of each, one behind the other."""

    def __init__(self, parts: Sequence[tuple[Objective, int]]) -> None:
        self.parts = [(part, rows) for part, rows in parts if rows]

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.parts) == 1:
            return self.parts[0][0](outputs, ids)
        sizes = [rows for _, rows in self.parts]
        split = {name: value.split(sizes) for name, value in outputs.items()}
        found = [
            part({name: values[k] for name, values in split.items()}, own)
            for k, ((part, _), own) in enumerate(zip(self.parts, ids.split(sizes), strict=True))
        ]
        losses, scores = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(scores)

    def select(self, rows: Tensor) -> Joined:
        if len(self.parts) == 1:
            return Joined([(self.parts[0][0].select(rows), len(rows))])
        homes = [(k, row) for k, (_, size) in enumerate(self.parts) for row in range(size)]
        chosen = []
        for k, run in groupby((homes[row] for row in rows.tolist()), key=lambda home: home[0]):
            own = torch.tensor([row for _, row in run], device=rows.device)
            chosen.append((self.parts[k][0].select(own), len(own)))
        return Joined(chosen)


class Evaluator:
    """What a method evaluates prompts with: an `Evaluate`.

    Attributes:
        table: the tokens that may be learned.
        model: embeddings (R, L, d) and ids (R, L) -> outputs.
        objective: of the rows of the method's state.
    """

    def __init__(
        self, table: TokenTable, model: Callable[[Tensor, Tensor], Outputs], objective: Objective, limit: BatchLimit
    ) -> None:
        self.table, self.model, self.objective, self.limit = table, model, objective, limit

    def __call__(
        self, ids: Tensor, gradient: bool = False, owner: Tensor | None = None, embeds: Tensor | None = None
    ) -> Evaluation:
        """Evaluate prompts, chunk by chunk; no row's result depends on the chunks.

        Args:
            ids: (N, L) tokens.
            gradient: also that of each row's loss by its embeddings.
            owner: (N,) int64, the row of the state whose objective judges each prompt. Default: row n judges prompt n.
            embeds: (N, L, d) evaluated in place of the tokens' own embeddings.

        Raises:
            torch.OutOfMemoryError, RuntimeError: one prompt alone does not fit into memory.
        """
        while True:
            size = self.limit.size(gradient)
            try:
                return self._chunked(ids, gradient, owner, embeds, size)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                # A step that is being captured as a graph is made again without it, by `Batch`.
                if not out_of_memory(error) or _capturing(ids) or not self.limit.halve(min(size, len(ids)), gradient):
                    raise

    def _chunked(
        self, ids: Tensor, gradient: bool, owner: Tensor | None, embeds: Tensor | None, size: int
    ) -> Evaluation:
        if len(ids) <= size:
            return self._evaluate(
                ids, gradient, self.objective if owner is None else self.objective.select(owner), embeds
            )
        owner = torch.arange(len(ids), device=ids.device) if owner is None else owner
        found = [
            self._evaluate(i, gradient, self.objective.select(rows), e)
            for i, rows, e in zip(
                ids.split(size),
                owner.split(size),
                embeds.split(size) if embeds is not None else [None] * -(-len(ids) // size),
                strict=True,
            )
        ]
        return Evaluation(
            ids,
            torch.cat([f.loss for f in found]),
            torch.cat([f.score for f in found]),
            torch.cat([f.gradient for f in found if f.gradient is not None]) if gradient else None,
        )

    def _evaluate(self, ids: Tensor, gradient: bool, objective: Objective, embeds: Tensor | None) -> Evaluation:
        with torch.set_grad_enabled(gradient):
            hard = (self.table.weight[ids] if embeds is None else embeds).detach().requires_grad_(gradient)
            loss, score = objective(self.model(hard, ids), ids)
        if not gradient:
            return Evaluation(ids, loss, score.detach())
        if not loss.requires_grad:
            kind = type(objective.parts[0][0] if isinstance(objective, Joined) else objective).__name__
            raise ValueError(f"the loss of {kind} does not depend on the embeddings, but the method needs its gradient")
        (slope,) = torch.autograd.grad(loss.sum(), hard)
        return Evaluation(ids, loss.detach(), score.detach(), slope.nan_to_num(0.0, 0.0, 0.0))


def _capturing(ids: Tensor) -> bool:
    return ids.is_cuda and torch.cuda.is_current_stream_capturing()
