"""GCG that looks at many exchanges by the gradient, tries a few, and tries more where the gradient is wrong."""

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
class ProbeMethod:
    """GCG with probe sampling (Zhao et al. 2024, "Accelerating Greedy Coordinate Gradient and General Prompt
    Optimization via Probe Sampling").

    A step draws `search_width` exchanges, as `GCGMethod` does, and predicts the loss of each. It evaluates the first
    `probes` of them, and takes α, by how much both orders of these agree: (1 + Spearman's rank correlation) / 2. Then
    it evaluates the best (1 - α) · search_width / reduction of the others by the prediction, at least one. The best of
    all that it evaluated is taken if it lowers the loss.

    In the paper a smaller model predicts. Here the gradient does, which the step has already: the loss plus the
    product of the gradient with the difference of the two embeddings.

    Args:
        search_width: the number of exchanges that a step draws.
        probes: how many of them are evaluated to see how good the prediction is; at least 2.
        reduction: R of the paper.
        top_k: the number of tokens for each position that a step draws from.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    search_width: int = 128
    probes: int = 16
    reduction: int = 4
    top_k: int = 128

    def __post_init__(self) -> None:
        check_counts(self, "search_width", "probes", "reduction", "top_k")
        if not 2 <= self.probes <= self.search_width:
            raise ValueError(f"probes must be 2 to search_width, {self.search_width}; got {self.probes}")

    @property
    def relative_cost(self) -> float:
        """The number of PEZ steps that take as long as one step of this method, if predictions agree by half."""
        return 1 + COST_OF_AN_EXCHANGE * (self.probes + self.search_width / self.reduction / 4)

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> ExchangeState:
        """Returns the state of prompts that begin at ids (R, L) int64."""
        draws = Draws(seed, self.search_width, num_top(table, self.top_k))
        return ExchangeState.at(TensorState(ids=ids), table, seed, draws)

    def step(self, state: ExchangeState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        ids, probes = state.tensors["ids"], self.probes
        current = evaluate(ids, gradient=update)
        if current.gradient is None:
            return current
        tried, predicted = self._drawn(state, current, evaluate.table)
        rows, count, length = tried.shape
        row = torch.arange(rows, device=ids.device)
        losses = torch.full((rows, count), torch.inf, dtype=current.loss.dtype, device=ids.device)
        probed = evaluate(tried[:, :probes].reshape(-1, length), owner=row.repeat_interleave(probes)).loss
        losses[:, :probes] = nan_is_infinite(probed).view(rows, probes)
        chosen = self._chosen(losses[:, :probes], predicted)
        owner, place = chosen.nonzero(as_tuple=True)
        losses[owner, place] = nan_is_infinite(evaluate(tried[owner, place], owner=owner).loss)
        best, winner = losses.min(1)
        better = best < nan_is_infinite(current.loss)
        state.move(torch.where(better[:, None], tried[row, winner], ids))
        return current

    def _drawn(self, state: ExchangeState, current: Evaluation, table: TokenTable) -> tuple[Tensor, Tensor]:
        """Returns the exchanges (R, C, L) of a step, and by how much each is predicted to raise the loss (R, C)."""
        ids, weight = current.ids, table.weight
        assert current.gradient is not None
        rank = torch.stack(state.drawn)
        tried, position = drawn_exchanges(ids, -current.gradient, table, state.tokens, rank, state.steps, self.top_k)
        row = torch.arange(len(ids), device=ids.device)[:, None]
        token = tried.gather(2, position[:, :, None])[:, :, 0]
        slope = current.gradient[row, position]
        return tried, ((weight[token] - weight[ids[row, position]]).to(slope.dtype) * slope).sum(-1)

    def _chosen(self, probed: Tensor, predicted: Tensor) -> Tensor:
        """Returns which exchanges (R, C) to evaluate besides the probes."""
        rows, count = predicted.shape
        agreement = (1 + _rank_correlation(probed, predicted[:, : self.probes])) / 2
        more = ((1 - agreement) * count / self.reduction).floor().clamp(min=1)
        others = predicted.clone()
        others[:, : self.probes] = torch.inf
        rank = others.argsort(dim=1, stable=True).argsort(1)
        return (rank < more[:, None]) & (others < torch.inf)


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Returns Spearman's rank correlation (R,) of values (R, n), in float64; ties rank in their order."""
    n = a.shape[1]
    ranks = [x.argsort(dim=1, stable=True).argsort(1).double() for x in (a, b)]
    return 1 - 6 * (ranks[0] - ranks[1]).square().sum(1) / (n * (n * n - 1))
