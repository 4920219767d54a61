"""Similarity between the features of prompts and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pez_fast.engine import Outputs


class Similarity:
    """The weighted mean cosine of each prompt with its targets; the loss is 1 - score.

    The loss is 1 - Sim(f(P), target) of Wen et al. 2023, section 4. The mean of cosines equals one product with the
    mean of the targets, so any number of targets costs as much as one.

    Args:
        targets: (R, D), for each prompt the weighted mean of its unit targets (`weighted_target`).
        output: the name of the model's output, (R, D) of unit length, that is compared with the targets.
    """

    def __init__(self, targets: Tensor, output: str = "features") -> None:
        self.targets, self.output = targets, output

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.targets)

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss (R,) and the score (R,) of prompts ids (R, L)."""
        score = (outputs[self.output] * self.targets).sum(-1)
        return 1 - score, score.detach()

    def select(self, rows: Tensor) -> Similarity:
        """Returns the objective of some rows; `rows` (R',) int64 may repeat a row."""
        return Similarity(self.targets[rows], self.output)


def weighted_target(targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Returns the weighted mean (D,) of targets: their weighted sum divided by the sum of |weights|.

    Args:
        targets: (T, D) unit features.
        weights: T finite numbers of either sign. Default: equal weights.

    Raises:
        ValueError: there is not one weight for each target, a weight is not finite, or all weights are 0.
    """
    if weights is None:
        return targets.mean(0)
    w = torch.as_tensor(checked_weights(weights, len(targets)), dtype=targets.dtype, device=targets.device)
    return (w[:, None] * targets).sum(0) / w.abs().sum()


def checked_weights(weights: Any, count: int) -> list[float]:
    """Returns the weights of `count` targets as plain numbers.

    Raises:
        ValueError: there is not one weight for each target, a weight is not finite, or all weights are 0.
    """
    try:
        if isinstance(weights, (str, bytes)):
            raise TypeError
        found = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise ValueError(f"weights must be a list of numbers; got {weights!r}") from None
    if len(found) != count:
        raise ValueError(f"weights must be one for each of the {count} targets; got {len(found)}")
    if not all(map(math.isfinite, found)) or not any(found):
        raise ValueError(f"weights must be finite and not all zero; got {found}")
    return found
