"""Exchange of single tokens at the end of a search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pez_fast._torch.linear import linear
from pez_fast.encoders.causal import FEWEST, filled_up
from pez_fast.engine.steps import Encode, RowObjective
from pez_fast.table import TokenTable

CANDIDATES = 32  # prompts tried in each round
LIKELY = 128  # tokens for each position that the gradient puts first, from which the candidates are drawn
_SCORES = 1 << 24  # of tokens, held at once


def polish(
    ids: Tensor,
    table: TokenTable,
    encode: Encode,
    objective: RowObjective,
    rounds: int,
    seed: int,
    at_once: int,
    callback: Callable[[int, Tensor, Tensor], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Improve prompts by exchanging one token a round, as Greedy Coordinate Gradient does (Zou et al. 2023, algorithm 1).

    In each round every position in turn is given tokens drawn from those that the gradient at the present tokens puts first;
    all such prompts are scored in one batch, and the best is taken if it is better than what it came from. The draws
    depend on the seed alone, so that a prompt is polished alike in any batch.

    Args:
        ids: (T, L) allowed tokens.
        encode, objective: as for the search, T rows.
        at_once: prompts scored at once.
        callback: called after each round with the number of rounds made, ids and scores; True ends it.

    Returns:
        ids (T, L), and their scores (T,).
    """
    count, length = ids.shape
    generator = torch.Generator().manual_seed(seed)
    tokens = table.weight[table.ids].to(torch.promote_types(table.dtype, torch.float32))
    likely = min(LIKELY, max(1, len(tokens) - 1))
    targets, places = torch.arange(count, device=ids.device), torch.arange(CANDIDATES, device=ids.device)
    for number in range(rounds + 1):
        with torch.set_grad_enabled(number < rounds):
            hard = table.weight[ids].detach().requires_grad_(number < rounds)
            loss, score = objective(encode(hard))
        if (number and callback is not None and callback(number, ids, score) is True) or number == rounds:
            break
        (gradient,) = torch.autograd.grad(loss, hard)
        first = _likely_tokens(-gradient, ids, table, tokens, likely)
        position = (torch.arange(CANDIDATES) + number * CANDIDATES) % length
        rank = torch.randint(likely, (CANDIDATES,), generator=generator)
        position, rank = position.to(ids.device), rank.to(ids.device)
        candidates = ids[:, None].repeat(1, CANDIDATES, 1)
        candidates[:, places, position] = first[:, position, rank]
        scores = _scores(candidates, table, encode, objective, at_once)
        best, which = scores.max(1)
        ids = torch.where((best > score)[:, None], candidates[targets, which], ids)
    return ids, score


def _likely_tokens(ascent: Tensor, ids: Tensor, table: TokenTable, tokens: Tensor, likely: int) -> Tensor:
    """ascent (T, L, d), ids (T, L) -> (T, L, likely) ids of the other tokens with the largest product, as the first-order
    change of the score by putting them there."""
    flat, present = ascent.reshape(-1, ascent.shape[-1]).to(tokens.dtype), torch.searchsorted(table.ids, ids.flatten())
    found = []
    rows = max(1, _SCORES // len(tokens))
    for part, own in zip(flat.split(rows), present.split(rows), strict=True):
        gain = linear(filled_up(part, FEWEST), tokens)[: len(part)]
        gain.scatter_(1, own[:, None], -torch.inf)
        found.append(table.ids[gain.topk(likely, 1).indices])
    return torch.cat(found).view(*ids.shape, likely)


@torch.no_grad()
def _scores(candidates: Tensor, table: TokenTable, encode: Encode, objective: RowObjective, at_once: int) -> Tensor:
    """(T, C, L) -> (T, C)."""
    count, each, length = candidates.shape
    owner = torch.arange(count, device=candidates.device).repeat_interleave(each)
    flat = candidates.view(-1, length)
    parts = [
        objective.rows(rows)(encode(table.weight[i]))[1]
        for i, rows in zip(flat.split(at_once), owner.split(at_once), strict=True)
    ]
    return torch.cat(parts).view(count, each)
