"""Greedy Coordinate Gradient: exchange of single tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pez_fast._shared.linear import linear
from pez_fast._shared.rows import MIN_ROWS, pad_rows
from pez_fast.engine import Evaluate, Evaluation
from pez_fast.table import TokenTable

_SCORES = 1 << 24  # of tokens, held at once


@dataclass(frozen=True)
class GCGMethod:
    """Each step tries exchanges of one token and takes the best one, if it is better (Zou et al. 2023, algorithm 1).

    Every position in turn is given tokens drawn from those that the gradient at the present tokens puts first. The draws
    depend on the seed and the number of the step alone.

    Args:
        search_width: prompts tried in each step.
        top_k: tokens for each position from which they are drawn.
    """

    search_width: int = 32
    top_k: int = 128
    relative_cost: ClassVar[float] = 13.0  # measured

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> GCGState:
        tokens = table.weight[table.ids].to(torch.promote_types(table.dtype, torch.float32))
        return GCGState(ids, [0] * len(ids), tokens, Draws(seed, self.search_width, self._likely(table)))

    def _likely(self, table: TokenTable) -> int:
        return min(self.top_k, max(1, len(table.ids) - 1))

    def step(self, state: GCGState, evaluate: Evaluate, update: bool) -> Evaluation:
        ids, width, device = state.ids, self.search_width, state.ids.device
        present = evaluate(ids, gradient=update)
        if present.gradient is None:
            return present
        rows, length = ids.shape
        likely = likely_tokens(-present.gradient, ids, evaluate.table, state.tokens, self._likely(evaluate.table))
        rank = torch.stack([state.draws[step] for step in state.steps]).to(device)
        position = (torch.arange(width) + torch.tensor(state.steps)[:, None] * width) % length
        row, place, position = (
            torch.arange(rows, device=device),
            torch.arange(width, device=device),
            position.to(device),
        )
        candidates = ids[:, None].repeat(1, width, 1)
        candidates[row[:, None], place, position] = likely[row[:, None], position, rank]
        scores = evaluate(candidates.view(-1, length), owner=row.repeat_interleave(width)).score.view(rows, width)
        best, which = scores.max(1)
        state.ids = torch.where((best > present.score)[:, None], candidates[row, which], ids)
        state.steps = [step + 1 for step in state.steps]
        return present


@dataclass
class GCGState:
    """Prompts ids (R, L), the number of steps that each has made, and what all share: tokens (K, d), and the draws."""

    ids: Tensor
    steps: list[int]
    tokens: Tensor
    draws: Draws

    def select(self, rows: Tensor) -> GCGState:
        return GCGState(self.ids[rows], [self.steps[row] for row in rows.tolist()], self.tokens, self.draws)

    def join(self, other: GCGState) -> GCGState:
        return GCGState(torch.cat([self.ids, other.ids]), self.steps + other.steps, self.tokens, self.draws)


class Draws:
    """For each step (width,) ranks below `end`, in the sequence that the seed begins."""

    def __init__(self, seed: int, width: int, end: int) -> None:
        self._generator, self._width, self._end = torch.Generator().manual_seed(seed), width, end
        self._drawn: list[Tensor] = []

    def __getitem__(self, step: int) -> Tensor:
        while len(self._drawn) <= step:
            self._drawn.append(torch.randint(self._end, (self._width,), generator=self._generator))
        return self._drawn[step]


def likely_tokens(ascent: Tensor, ids: Tensor, table: TokenTable, tokens: Tensor, count: int) -> Tensor:
    """ascent (R, L, d), ids (R, L), tokens (K, d) those of `table.ids` -> (R, L, count) ids of the other tokens with the largest
    product, which is the first-order change of the score by putting them there."""
    flat, present = ascent.reshape(-1, ascent.shape[-1]).to(tokens.dtype), torch.searchsorted(table.ids, ids.flatten())
    found = []
    rows = max(1, _SCORES // len(tokens))
    for part, own in zip(flat.split(rows), present.split(rows), strict=True):
        gain = linear(pad_rows(part, MIN_ROWS), tokens)[: len(part)]
        gain.scatter_(1, own[:, None], -torch.inf)
        found.append(table.ids[gain.topk(count, 1).indices])
    return torch.cat(found).view(*ids.shape, count)
