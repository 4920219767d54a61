"""Greedy Coordinate Gradient (GCG): a search by exchanges of single tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pez_fast._shared.linear import linear
from pez_fast._shared.rows import MIN_ROWS, pad_rows
from pez_fast.engine import Evaluate, Evaluation
from pez_fast.table import TokenTable

_MAX_GAINS = 1 << 24  # the most gains of tokens in memory at once


@dataclass(frozen=True)
class GCGMethod:
    """Each step tries exchanges of one token and takes the best one if it raises the score (Zou et al. 2023, algorithm
    1).

    The step tries `search_width` exchanges. It goes through the positions in turn and draws each new token from the
    `top_k` tokens with the largest gain by the gradient at the current tokens. The draws depend only on the seed and
    the number of the step.

    Args:
        search_width: the number of prompts that a step tries.
        top_k: the number of tokens for each position that a step draws from.
    """

    search_width: int = 32
    top_k: int = 128
    relative_cost: ClassVar[float] = 13.0  # measured, in steps of PEZ

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> GCGState:
        """Returns the state of prompts that begin at ids (R, L) int64."""
        tokens = table.weight[table.ids].to(torch.promote_types(table.dtype, torch.float32))
        return GCGState(ids, [0] * len(ids), tokens, Draws(seed, self.search_width, self._num_top(table)))

    def _num_top(self, table: TokenTable) -> int:
        """Returns `top_k`, or fewer if the table has fewer other tokens."""
        return min(self.top_k, max(1, len(table.ids) - 1))

    def step(self, state: GCGState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        ids, width, device = state.ids, self.search_width, state.ids.device
        current = evaluate(ids, gradient=update)
        if current.gradient is None:
            return current
        rows, length = ids.shape
        top_tokens = top_gain_tokens(
            -current.gradient, ids, evaluate.table, state.tokens, self._num_top(evaluate.table)
        )
        rank = torch.stack([state.draws[step] for step in state.steps]).to(device)
        position = (torch.arange(width) + torch.tensor(state.steps)[:, None] * width) % length
        row, place, position = (
            torch.arange(rows, device=device),
            torch.arange(width, device=device),
            position.to(device),
        )
        candidates = ids[:, None].repeat(1, width, 1)
        candidates[row[:, None], place, position] = top_tokens[row[:, None], position, rank]
        scores = evaluate(candidates.view(-1, length), owner=row.repeat_interleave(width)).score.view(rows, width)
        best, winner = scores.max(1)
        state.ids = torch.where((best > current.score)[:, None], candidates[row, winner], ids)
        state.steps = [step + 1 for step in state.steps]
        return current


@dataclass
class GCGState:
    """The state of R prompts.

    Attributes:
        ids: (R, L) int64, the prompts.
        steps: for each prompt, the number of steps that it has made.
        tokens: (K, d) float32 or wider, the embeddings of the tokens that may be learned; the prompts share them.
        draws: the random draws; the prompts share them.
    """

    ids: Tensor
    steps: list[int]
    tokens: Tensor
    draws: Draws

    def select(self, rows: Tensor) -> GCGState:
        """Returns the state of some prompts, rows (R',) int64."""
        return GCGState(self.ids[rows], [self.steps[row] for row in rows.tolist()], self.tokens, self.draws)

    def join(self, other: GCGState) -> GCGState:
        """Returns the state of these prompts, followed by those of `other`."""
        return GCGState(torch.cat([self.ids, other.ids]), self.steps + other.steps, self.tokens, self.draws)


class Draws:
    """Random ranks for each step, in a sequence that depends on the seed alone.

    Args:
        seed: the seed of the sequence.
        width: the number of ranks for a step.
        end: all ranks are below it.
    """

    def __init__(self, seed: int, width: int, end: int) -> None:
        self._generator, self._width, self._end = torch.Generator().manual_seed(seed), width, end
        self._drawn: list[Tensor] = []

    def __getitem__(self, step: int) -> Tensor:
        """Returns the ranks (width,) int64 of a step."""
        while len(self._drawn) <= step:
            self._drawn.append(torch.randint(self._end, (self._width,), generator=self._generator))
        return self._drawn[step]


def top_gain_tokens(ascent: Tensor, ids: Tensor, table: TokenTable, tokens: Tensor, count: int) -> Tensor:
    """Returns the tokens with the largest first-order gain at each position.

    The gain of a token is the product of its embedding with `ascent`. The token that stands at a position is left out.

    Args:
        ascent: (R, L, d), the negative gradient of the loss by the embeddings.
        ids: (R, L) int64, the tokens that stand there.
        table: the tokens that may be learned.
        tokens: (K, d), the embeddings of `table.ids`.
        count: the number of tokens for each position.

    Returns:
        ids (R, L, count) int64, the largest gain first.
    """
    flat, columns = ascent.reshape(-1, ascent.shape[-1]).to(tokens.dtype), torch.searchsorted(table.ids, ids.flatten())
    found = []
    rows = max(1, _MAX_GAINS // len(tokens))
    for part, column in zip(flat.split(rows), columns.split(rows), strict=True):
        gain = linear(pad_rows(part, MIN_ROWS), tokens)[: len(part)]
        gain.scatter_(1, column[:, None], -torch.inf)
        found.append(table.ids[gain.topk(count, 1).indices])
    return torch.cat(found).view(*ids.shape, count)
