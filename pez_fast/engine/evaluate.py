"""Scores and gradients of many prompts, in chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pez_fast._shared.devices import is_capturing, out_of_memory, prompts_scored_at_once
from pez_fast.engine.protocols import Evaluation, Objective, Outputs
from pez_fast.table import TokenTable


@dataclass
class BatchLimit:
    """How many prompts are evaluated at once; a search halves it when memory runs out.

    Attributes:
        rows: prompts evaluated at once with a gradient.
        scored: prompts evaluated at once without a gradient.
    """

    rows: int
    scored: int

    @classmethod
    def of(cls, rows: int, device: torch.device) -> BatchLimit:
        """Returns the limit for `rows` prompts with a gradient; on a CPU, fewer are scored at once."""
        return cls(rows, min(rows, prompts_scored_at_once(device)))

    def size(self, gradient: bool) -> int:
        """Returns how many prompts may be evaluated at once, with or without a gradient."""
        return self.rows if gradient else self.scored

    def halve(self, rows: int, gradient: bool) -> bool:
        """Halves the limit after `rows` prompts did not fit.

        Returns:
            False if a single prompt did not fit, so that a smaller chunk cannot help.
        """
        half = (rows + 1) // 2
        self.scored = min(self.scored, half)
        if gradient:
            self.rows = half
        return rows > 1


class Joined:
    """The objective of requests that share a batch.

    Args:
        parts: pairs of a request's objective and its number of rows, in the order of the rows.
    """

    def __init__(self, parts: Sequence[tuple[Objective, int]]) -> None:
        self.parts = [(part, rows) for part, rows in parts if rows]

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.parts) == 1:
            return self.parts[0][0](outputs, ids)
        sizes = [rows for _, rows in self.parts]
        split = {name: value.split(sizes) for name, value in outputs.items()}
        found = [
            part({name: values[k] for name, values in split.items()}, part_ids)
            for k, ((part, _), part_ids) in enumerate(zip(self.parts, ids.split(sizes), strict=True))
        ]
        losses, scores = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(scores)

    def select(self, rows: Tensor) -> Joined:
        if len(self.parts) == 1:
            return Joined([(self.parts[0][0].select(rows), len(rows))])
        places = [(k, row) for k, (_, size) in enumerate(self.parts) for row in range(size)]
        chosen = []
        for k, members in groupby((places[row] for row in rows.tolist()), key=lambda place: place[0]):
            part_rows = torch.tensor([row for _, row in members], device=rows.device)
            chosen.append((self.parts[k][0].select(part_rows), len(part_rows)))
        return Joined(chosen)


class Evaluator:
    """An `Evaluate`: evaluates the prompts of a method.

    Args:
        table: the tokens that may be learned.
        model: a function of embeddings (R, L, d) and ids (R, L) that returns outputs; a `StochasticModel` also takes
            the draws of the rows.
        objective: an objective with a row for each row of the method's state.
        limit: how many prompts are evaluated at once; shared, and halved when memory runs out.
        held_out: whether the engine scores prompts itself, on held-out examples, so that a method need not.

    Attributes:
        draws: (R, 2) int64, the seed and the step of each row of the state, for a `StochasticModel`; else None.
    """

    def __init__(
        self,
        table: TokenTable,
        model: Callable[..., Outputs],
        objective: Objective,
        limit: BatchLimit,
        held_out: bool = False,
    ) -> None:
        self.table, self.model, self.objective, self.limit = table, model, objective, limit
        self.held_out = held_out
        self.draws: Tensor | None = None

    def __call__(
        self, ids: Tensor, gradient: bool = False, owner: Tensor | None = None, embeds: Tensor | None = None
    ) -> Evaluation:
        """Evaluates prompts, chunk by chunk; no row's result depends on the chunks.

        Args:
            ids: (N, L) int64 tokens.
            gradient: whether to compute the gradient of each row's loss by its embeddings.
            owner: (N,) int64, for each prompt the row of the state whose objective scores it. Default: row n scores
                prompt n.
            embeds: (N, L, d) embeddings to evaluate in place of the tokens' own.

        Returns:
            An `Evaluation` with loss (N,), score (N,) and, with `gradient`, the gradient (N, L, d).

        Raises:
            torch.OutOfMemoryError, RuntimeError: a single prompt does not fit into memory.
            ValueError: the loss does not depend on the embeddings, but `gradient` is set.
        """
        while True:
            size = self.limit.size(gradient)
            try:
                return self._chunked(ids, gradient, owner, embeds, size)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                # While a step is being captured as a graph, `Batch` handles the error: it makes the step eagerly.
                if (
                    not out_of_memory(error)
                    or is_capturing(ids.device)
                    or not self.limit.halve(min(size, len(ids)), gradient)
                ):
                    raise

    def _chunked(
        self, ids: Tensor, gradient: bool, owner: Tensor | None, embeds: Tensor | None, size: int
    ) -> Evaluation:
        """Evaluates the prompts in chunks of `size` rows."""
        if len(ids) <= size:
            return self._evaluate(ids, gradient, owner, embeds)
        owner = torch.arange(len(ids), device=ids.device) if owner is None else owner
        parts = [None] * -(-len(ids) // size) if embeds is None else embeds.split(size)
        found = [
            self._evaluate(i, gradient, rows, e)
            for i, rows, e in zip(ids.split(size), owner.split(size), parts, strict=True)
        ]
        return Evaluation(
            ids,
            torch.cat([f.loss for f in found]),
            torch.cat([f.score for f in found]),
            torch.cat([f.gradient for f in found if f.gradient is not None]) if gradient else None,
        )

    def _evaluate(self, ids: Tensor, gradient: bool, owner: Tensor | None, embeds: Tensor | None) -> Evaluation:
        """Evaluates one chunk; a gradient that is not finite becomes 0."""
        objective = self.objective if owner is None else self.objective.select(owner)
        drawn = (
            () if self.draws is None else (self.draws if owner is None else self.draws[owner.to(self.draws.device)],)
        )
        with torch.set_grad_enabled(gradient):
            hard = (self.table.weight[ids] if embeds is None else embeds).detach().requires_grad_(gradient)
            loss, score = objective(self.model(hard, ids, *drawn), ids)
        if not gradient:
            return Evaluation(ids, loss, score.detach())
        if not loss.requires_grad:
            kind = type(objective.parts[0][0] if isinstance(objective, Joined) else objective).__name__
            raise ValueError(f"the loss of {kind} does not depend on the embeddings, but the method needs its gradient")
        (grad,) = torch.autograd.grad(loss.sum(), hard)
        return Evaluation(ids, loss.detach(), score.detach(), grad.nan_to_num(0.0, 0.0, 0.0))
