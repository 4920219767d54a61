"""What the methods share that exchange single tokens and keep an exchange if it lowers the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast.engine import Evaluate, Evaluation, TensorState
from pez_fast.methods.draws import DrawnState, Draws
from pez_fast.methods.gains import top_gain_tokens
from pez_fast.table import TokenTable

# Steps of PEZ that take as long as the evaluation of one exchange without a gradient, measured.
COST_OF_AN_EXCHANGE = 0.375


@dataclass
class ExchangeState(DrawnState):
    """The state of R prompts.

    Attributes:
        tokens: (K, d) float32 or wider, the embeddings of the tokens that may be learned; the prompts share them.
    """

    tokens: Tensor

    @classmethod
    def at(cls, tensors: TensorState, table: TokenTable, seed: int, draws: Draws) -> ExchangeState:
        """Returns the state of prompts before their first step, with their draws.

        Args:
            tensors: a row for each prompt; "ids" (R, L) int64 are the prompts.
        """
        tokens = table.weight[table.ids].to(torch.promote_types(table.dtype, torch.float32))
        rows = len(tensors["ids"])
        return cls(tensors, [seed] * rows, [0] * rows, {seed: draws}, tokens)


def num_top(table: TokenTable, top_k: int) -> int:
    """Returns `top_k`, or fewer if the table has fewer other tokens."""
    return min(top_k, max(1, len(table.ids) - 1))


def drawn_exchanges(
    ids: Tensor, ascent: Tensor, table: TokenTable, tokens: Tensor, rank: Tensor, steps: Sequence[int], top_k: int
) -> tuple[Tensor, Tensor]:
    """Returns the prompts that a step tries, each with one token exchanged, and the positions of the exchanges.

    Each row goes through its positions in turn, from step to step, and takes the token of the drawn rank among the
    `top_k` with the largest gain there.

    Args:
        ids: (N, L) int64, the prompts.
        ascent: (N, L, d), the negative gradient, or a mean of such.
        tokens: as in `ExchangeState`.
        rank: (N, W) int64, the draws.
        steps: for each row the number of updates that it has had.

    Returns:
        The prompts (N, W, L) int64 and the positions (N, W) int64.
    """
    (rows, width), device = rank.shape, ids.device
    top_tokens = top_gain_tokens(ascent, ids, table, tokens, num_top(table, top_k))
    first = torch.arange(width) + torch.tensor(steps)[:, None] * width
    position = (first % ids.shape[1]).to(device)
    row, place = torch.arange(rows, device=device)[:, None], torch.arange(width, device=device)
    tried = ids[:, None].repeat(1, width, 1)
    tried[row, place, position] = top_tokens[row, position, rank.to(device)]
    return tried, position


def best_exchange(current: Evaluation, candidates: Tensor, evaluate: Evaluate) -> Tensor:
    """Evaluates exchanges and returns the best of each prompt if its loss is below the prompt's own.

    Of equal exchanges the first wins. A loss that is NaN counts as infinite.

    Args:
        current: the evaluation of the prompts ids (R, L), in the same step.
        candidates: (R, C, L) int64, the prompts to try for each row.

    Returns:
        ids (R, L) int64.
    """
    rows, count, length = candidates.shape
    row = torch.arange(rows, device=candidates.device)
    losses = evaluate(candidates.view(-1, length), owner=row.repeat_interleave(count)).loss.view(rows, count)
    best, winner = nan_is_infinite(losses).min(1)
    better = best < nan_is_infinite(current.loss)
    return torch.where(better[:, None], candidates[row, winner], current.ids)


def nan_is_infinite(loss: Tensor) -> Tensor:
    """Returns losses of any shape with infinity in place of NaN."""
    return loss.masked_fill(loss.isnan(), torch.inf)
