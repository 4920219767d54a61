"""Several objectives as one."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

from torch import Tensor

from pez_fast.engine import Objective, Outputs


class WeightedSum:
    """The weighted sum of several objectives, of their losses as of their scores.

    Args:
        terms: pairs of a finite weight and an objective; all objectives have the same rows.

    Raises:
        ValueError: there is no term, or a weight is not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        self.terms = list(terms)
        if not self.terms:
            raise ValueError("terms must hold at least one pair of a weight and an objective; got none")
        for weight, _ in self.terms:
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"terms must have finite weights; got {weight!r}")

    def __len__(self) -> int:
        """Returns the number of rows; 1 if no objective has a length."""
        return max((len(term) for _, term in self.terms if isinstance(term, Sized)), default=1)

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss (R,) and the score (R,) of prompts ids (R, L)."""
        evaluated = [(weight, *term(outputs, ids)) for weight, term in self.terms]
        loss, score = evaluated[0][0] * evaluated[0][1], evaluated[0][0] * evaluated[0][2]
        for weight, term_loss, term_score in evaluated[1:]:
            loss, score = loss + weight * term_loss, score + weight * term_score
        return loss, score

    def select(self, rows: Tensor) -> WeightedSum:
        """Returns the objective of some rows; `rows` (R',) int64 may repeat a row."""
        return WeightedSum([(weight, term.select(rows)) for weight, term in self.terms])
