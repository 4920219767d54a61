"""Every tolerance of these tests. Ids have none: they are equal, and so is whatever is only copied."""

from __future__ import annotations

import torch
from torch import Tensor

SIMILARITY = 1e-6  # a float32 cosine against that of the oracle
UNIT = 1.5 * 2.0**-24  # a prepared unit row: one float32 rounding (2^-24) and a little for the float64 before it
ADAMW64 = 1e-12  # AdamW in float64, relative: the same formula, rounded in another order, over some tens of steps
TORCH = 2.0  # our largest error against float64, in units of torch's own for the same lines


def assert_as_good_as_torch(actual: Tensor, own: Tensor, exact: Tensor) -> None:
    """Largest error of `actual` at most TORCH times that of torch's `own` lines, one rounding of the result allowed."""
    rounding = torch.finfo(actual.dtype).eps / 2 * exact.abs().max()
    allowed = TORCH * (own.double() - exact).abs().max() + rounding
    error = (actual.double() - exact).abs().max()
    assert error <= allowed, f"error {error:.3e}, torch's own {(allowed - rounding) / TORCH:.3e}"
