"""Numbers of rows that a CPU's matrix product rounds alike."""

from __future__ import annotations

import torch
from torch import Tensor

ROW_MULTIPLE = 4  # MKL's rows round alike in multiples of it
MIN_ROWS = 16  # oneDNN's rows round alike from it on


def pad_rows(batch: Tensor, least: int = ROW_MULTIPLE) -> Tensor:
    """The batch (R, …) with zero rows added up to a multiple of `ROW_MULTIPLE`, and to at least so many.

    A CPU's matrix product takes rows in groups and treats the remaining rows differently, so that without the zero rows a
    result would depend on what else is in the batch. The two constants are measured.
    """
    missing = max(least, len(batch) + -len(batch) % ROW_MULTIPLE) - len(batch)
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch
