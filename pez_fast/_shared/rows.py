"""Numbers of rows at which a CPU's matrix product rounds every row alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROW_MULTIPLE = 4  # MKL rounds rows alike if their number is a multiple of it
MIN_ROWS = 16  # oneDNN rounds rows alike from this number on


def pad_rows(batch: Tensor, least: int = ROW_MULTIPLE) -> Tensor:
    """Returns the batch (R, …) with zero rows appended.

    The new number of rows is a multiple of `ROW_MULTIPLE` and at least `least`. A CPU's matrix product takes rows in
    groups and treats the remaining rows differently, so without the zero rows a result would depend on what else is in
    the batch. Both constants are measured.
    """
    missing = max(least, len(batch) + -len(batch) % ROW_MULTIPLE) - len(batch)
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch


def run_alike(batch: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns run(batch), in which a row of the batch (R, …) depends on no other row and not on R, to the bit.

    `run` gets a number of rows that rounds alike, and makes its products by `frozen_products`. A CPU's float64 products
    round by how many rows there are and by a row's place among them, so there `run` gets each row by itself.
    """
    if batch.dtype == torch.float64 and batch.device.type == "cpu":
        return run_singly(batch, run)
    return run(pad_rows(batch))[: len(batch)]


def run_singly(batch: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns run(batch), computed row by row of the batch (R, …); what `run` appends to a row's result is dropped."""
    return torch.cat([run(row)[:1] for row in batch.split(1)]) if len(batch) else run(batch)
