"""Similarity of the features of prompts with targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pez_fast.engine import Outputs


class Similarity:
    """Weighted mean cosine with targets, one mean for each prompt; the loss is 1 - score.

    1 - Sim(f(P), target) of Wen et al. 2023, section 4. A mean of cosines is one product with the mean of the targets, so
    any number of targets costs as much as one.

    Args:
        targets: (R, D): for each prompt the weighted mean of its unit targets (`weighted_target`).
        output: which of the model's outputs, (R, D) of unit length, is compared.
    """

    def __init__(self, targets: Tensor, output: str = "features") -> None:
        self.targets, self.output = targets, output

    def __len__(self) -> int:
        return len(self.targets)

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        score = (outputs[self.output] * self.targets).sum(-1)
        return 1 - score, score.detach()

    def select(self, rows: Tensor) -> Similarity:
        return Similarity(self.targets[rows], self.output)


def weighted_target(targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
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
