"""Greedy Coordinate Gradient (GCG): a search by exchanges of single tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast.engine import Evaluate, Evaluation, TensorState
from pez_fast.methods.checks import check_counts, check_numbers
from pez_fast.methods.draws import Draws
from pez_fast.methods.exchange import COST_OF_AN_EXCHANGE, ExchangeState, best_exchange, drawn_exchanges, num_top
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class GCGMethod:
    """Each step tries exchanges of one token and takes the best one if it lowers the loss (Zou et al. 2023, algorithm
    1).

    The step tries `search_width` exchanges. It goes through the positions in turn and draws each new token from the
    `top_k` tokens with the largest gain by the gradient at the current tokens. The draws depend only on the seed and
    the number of the step.

    Args:
        search_width: the number of prompts that a step tries.
        top_k: the number of tokens for each position that a step draws from.
        momentum: μ of the mean of gradients m ← μ m + (1 - μ) ∇, from which the gains are taken (Zhang and Wei 2024,
            "Boosting Jailbreak Attack with Momentum"). With 0, the default, the gains are those of the step's own
            gradient. The mean begins at 0.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    search_width: int = 32
    top_k: int = 128
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "search_width", "top_k")
        check_numbers(self, "momentum")
        if self.momentum >= 1:
            raise ValueError(f"momentum must be below 1; got {self.momentum!r}")

    @property
    def relative_cost(self) -> float:
        """The number of PEZ steps that take as long as one step of this method."""
        return 1 + COST_OF_AN_EXCHANGE * self.search_width

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> ExchangeState:
        """Returns the state of prompts that begin at ids (R, L) int64."""
        tensors = TensorState(ids=ids)
        if self.momentum:
            dtype = torch.promote_types(table.dtype, torch.float32)
            tensors["momentum"] = torch.zeros(*ids.shape, table.dim, dtype=dtype, device=ids.device)
        return ExchangeState.at(tensors, table, seed, Draws(seed, self.search_width, num_top(table, self.top_k)))

    def step(self, state: ExchangeState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        ids = state.tensors["ids"]
        current = evaluate(ids, gradient=update)
        if current.gradient is None:
            return current
        ascent, rank = -self._mean(state, current.gradient), torch.stack(state.drawn)
        candidates, _ = drawn_exchanges(ids, ascent, evaluate.table, state.tokens, rank, state.steps, self.top_k)
        state.move(best_exchange(current, candidates, evaluate))
        return current

    def _mean(self, state: ExchangeState, gradient: Tensor) -> Tensor:
        """Returns the mean (R, L, d) of the gradients so far, to which it adds `gradient` (R, L, d)."""
        if not self.momentum:
            return gradient
        before = state.tensors["momentum"]
        state.tensors["momentum"] = self.momentum * before + (1 - self.momentum) * gradient.to(before.dtype)
        return state.tensors["momentum"]
