"""Losses over the features of prompts: callables features (R, D) -> (loss, score (R,))."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TargetSimilarity:
    """Weighted mean cosine with targets, one mean for each prompt; the loss is the sum of 1 - score.

    1 - Sim(f(P), target) of Wen et al. 2023, section 4. A mean of cosines is one product with the mean of the targets, so
    any number of targets costs as much as one. Each prompt's gradient is that of its own loss.

    Args:
        goals: (R, D): for each prompt the weighted mean of its unit targets (`weighted_goal`).
    """

    def __init__(self, goals: Tensor) -> None:
        self.goals = goals

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        score = (features * self.goals).sum(-1)
        return (1 - score).sum(), score.detach()

    def rows(self, rows: Tensor) -> TargetSimilarity:
        """For some of the prompts: rows (R',) int64."""
        return TargetSimilarity(self.goals[rows])


def weighted_goal(targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """targets (T, D) unit features, T weights of either sign -> (D,): their weighted sum over the sum of |weights|.

    Raises:
        ValueError: not one finite weight for each target, or only zeros.
    """
    if weights is None:
        return targets.mean(0)
    w = torch.as_tensor(list(weights), dtype=targets.dtype, device=targets.device)
    if w.shape != (len(targets),):
        raise ValueError(f"weights must be one for each of the {len(targets)} targets; got {len(w)}")
    if not w.isfinite().all() or not w.any():
        raise ValueError(f"weights must be finite and not all zero; got {list(weights)}")
    return (w[:, None] * targets).sum(0) / w.abs().sum()
