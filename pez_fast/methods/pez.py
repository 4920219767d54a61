"""PEZ: soft prompts that AdamW moves by the gradient at their nearest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from pez_fast.engine import Evaluate, Evaluation
from pez_fast.methods.adamw import AdamWMethod, PEZState

__all__ = ["PEZMethod", "PEZState"]


@dataclass(frozen=True)
class PEZMethod(AdamWMethod):
    """Each step evaluates the projection of the soft prompts and updates them by AdamW (Wen et al. 2023, algorithm 1).

    Args:
        lr, weight_decay: options of AdamW; the defaults are the paper's.
        impl: the implementation of the nearest-token search.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    def step(self, state: PEZState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the nearest tokens and, with `update`, makes one step of AdamW; see `Method`."""
        evaluation = evaluate(self._nearest(state, state.soft_prompts(), evaluate.table), gradient=update)
        if evaluation.gradient is not None:  # straight through: the soft prompts take the gradient at the tokens
            state.update(evaluation.gradient)
        return evaluation
