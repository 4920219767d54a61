"""Several objectives at once."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

from torch import Tensor

from pez_fast.engine import Objective, Outputs


class WeightedSum:
    """The sum of the losses and of the scores of several objectives, each times its weight.

    Args:
        terms: pairs of a finite weight and an objective, of the same rows.

    Raises:
        ValueError: no term, or a weight that is not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        self.terms = list(terms)
        if not self.terms:
            raise ValueError("terms must hold at least one pair of a weight and an objective; got none")
        for weight, _ in self.terms:
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"terms must have finite weights; got {weight!r}")

    def __len__(self) -> int:
        return max((len(term) for _, term in self.terms if isinstance(term, Sized)), default=1)

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = [(weight, *term(outputs, ids)) for weight, term in self.terms]
        loss, score = found[0][0] * found[0][1], found[0][0] * found[0][2]
        for weight, own_loss, own_score in found[1:]:
            loss, score = loss + weight * own_loss, score + weight * own_score
        return loss, score

    def select(self, rows: Tensor) -> WeightedSum:
        return WeightedSum([(weight, term.select(rows)) for weight, term in self.terms])
