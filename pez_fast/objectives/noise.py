"""The loss of a diffusion model's predictions of noise."""

from __future__ import annotations

from torch import Tensor

from pez_fast.engine import Outputs


class NoiseLoss:
    """The mean of a diffusion model's errors in predicting noise; the score is its negative.

    This is the loss that such models are trained with (Ho et al. 2020, equation 14), as a function of the prompt.

    Args:
        rows: the number of rows.
    """

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.rows

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss (R,) and the score (R,) of prompts ids (R, L)."""
        loss = outputs["noise_error"].mean(1)
        return loss, -loss.detach()

    def select(self, rows: Tensor) -> NoiseLoss:
        """Returns the objective of some rows; `rows` (R',) int64 may repeat a row."""
        return NoiseLoss(len(rows))
