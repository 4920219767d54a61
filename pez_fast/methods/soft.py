"""Prompt tuning: soft prompts that AdamW moves by the gradient at themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pez_fast.engine import Evaluate, Evaluation
from pez_fast.methods.adamw import AdamWMethod, PEZState


@dataclass(frozen=True)
class SoftPromptMethod(AdamWMethod):
    """Each step evaluates the soft prompts themselves and updates them by AdamW.

    This is prompt tuning (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2);
    the paper uses Adafactor in place of AdamW.

    Nothing projects the soft prompts, so the tokens nearest to them are as a rule no good prompt. They bound what hard
    prompts can reach, and a frozen model can use them as they are. The state's `soft_prompts()` returns them, and the
    engine keeps those that a search ends with.

    Args:
        lr, weight_decay: options of AdamW; the default rate was the best of 0.003 to 0.3 on the bundled model.
        impl: the implementation of the nearest-token search.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    lr: float = 0.03
    weight_decay: float = 0.0
    keeps_state: ClassVar[bool] = True
    relative_cost: ClassVar[float] = 1.4

    def step(self, state: PEZState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the soft prompts and, with `update`, makes one step of AdamW; see `Method`.

        Returns:
            The nearest tokens ids (R, L) int64, the loss (R,) and the gradient (R, L, d) of the soft prompts, and the
            score (R,) of the tokens; the score is NaN if the engine scores the tokens itself (`Evaluate.held_out`).
        """
        soft = state.soft_prompts()
        ids = self._nearest(state, soft, evaluate.table)
        found = evaluate(ids, gradient=update, embeds=soft)
        if getattr(evaluate, "held_out", False):
            score = torch.full_like(found.score, torch.nan)
        else:
            score = evaluate(ids).score
        if found.gradient is not None:
            state.update(found.gradient)
        return replace(found, score=score)
