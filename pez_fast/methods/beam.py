"""Exchanges of single tokens from several prompts at once: GCG with a beam."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast.engine import Evaluate, Evaluation, TensorState
from pez_fast.methods.checks import check_counts
from pez_fast.methods.draws import Draws
from pez_fast.methods.exchange import COST_OF_AN_EXCHANGE, ExchangeState, drawn_exchanges, nan_is_infinite, num_top
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class BeamMethod:
    """GCG that keeps the best `beams` different prompts of each row, and exchanges tokens in all of them.

    Each step takes the gradient at every prompt of the beam and tries `search_width` exchanges in all, as many from
    each prompt, drawn as `GCGMethod` draws them. The best different prompts among the beam and the exchanges are the
    next beam (the buffer of Sadasivan et al. 2024, "Fast Adversarial Attacks on Language Models In One GPU Minute", and
    of nanoGCG, without its random restarts). With one beam it is `GCGMethod`.

    Args:
        beams: the number of prompts that are kept for each row.
        search_width: the number of prompts that a step tries for each row, at least `beams`.
        top_k: the number of tokens for each position that a step draws from.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    beams: int = 4
    search_width: int = 32
    top_k: int = 128

    def __post_init__(self) -> None:
        check_counts(self, "beams", "search_width", "top_k")
        if self.search_width < self.beams:
            raise ValueError(f"search_width must be at least beams, {self.beams}; got {self.search_width}")

    @property
    def relative_cost(self) -> float:
        """The number of PEZ steps that take as long as one step of this method."""
        return self.beams + COST_OF_AN_EXCHANGE * self.beams * self._each

    @property
    def _each(self) -> int:
        """The number of exchanges from each prompt of a beam."""
        return self.search_width // self.beams

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> ExchangeState:
        """Returns the state of prompts that begin at ids (R, L) int64."""
        tensors = TensorState(ids=ids, beams=ids[:, None].repeat(1, self.beams, 1))
        return ExchangeState.at(tensors, table, seed, Draws(seed, self.beams * self._each, num_top(table, self.top_k)))

    def step(self, state: ExchangeState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        beams = state.tensors["beams"]
        rows, count, length = beams.shape
        row = torch.arange(rows, device=beams.device)
        found = evaluate(beams.view(-1, length), gradient=update, owner=row.repeat_interleave(count))
        best = nan_is_infinite(found.loss).view(rows, count).argmin(1) + row * count  # the first of equals
        gradient = None if found.gradient is None else found.gradient[best]
        current = Evaluation(found.ids[best], found.loss[best], found.score[best], gradient)
        if found.gradient is None:
            return current
        rank = torch.stack(state.drawn).view(-1, self._each)
        steps = [step for step in state.steps for _ in range(count)]
        tried, _ = drawn_exchanges(found.ids, -found.gradient, evaluate.table, state.tokens, rank, steps, self.top_k)
        tried = tried.view(-1, length)
        losses = evaluate(tried, owner=row.repeat_interleave(count * self._each)).loss.view(rows, -1)
        together = torch.cat([beams, tried.view(rows, -1, length)], 1)
        state.tensors["beams"] = _best_different(together, torch.cat([found.loss.view(rows, count), losses], 1), count)
        state.move(state.tensors["beams"][:, 0])
        return current


def _best_different(ids: Tensor, loss: Tensor, count: int) -> Tensor:
    """Returns the best `count` different prompts of each row, (R, count, L), the first of equals first.

    Args:
        ids: (R, C, L) int64, with a row's best of before first.
        loss: (R, C).

    Where a row has fewer different ones, its best stands in their place.
    """
    order = nan_is_infinite(loss).sort(dim=1, stable=True).indices
    ids = ids.gather(1, order[:, :, None].expand_as(ids))
    same = (ids[:, :, None] == ids[:, None]).all(-1).tril(-1).any(-1)  # as one before it
    different = same.to(torch.int8).sort(dim=1, stable=True).indices[:, :count]
    missing = same.gather(1, different)
    different = different.masked_fill(missing, 0)
    return ids.gather(1, different[:, :, None].expand(-1, -1, ids.shape[-1]))
