"""Numbers of rows at which a CPU's matrix product rounds every row alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

ROW_MULTIPLE = 4  # MKL rounds rows alike if their number is a multiple of it
MIN_ROWS = 16  # oneDNN rounds rows alike from this number on
_MOST = 1024  # rows at which MKL is taken to round as it does for more


def pad_rows(batch: Tensor, least: int = ROW_MULTIPLE) -> Tensor:
    """Returns the batch (R, …) with zero rows appended.

    The new number of rows is a multiple of `ROW_MULTIPLE` and at least `least`. A CPU's matrix product takes rows in
    groups and treats the remaining rows differently, so without the zero rows a result would depend on what else is in
    the batch. Both constants are measured.
    """
    missing = max(least, len(batch) + -len(batch) % ROW_MULTIPLE) - len(batch)
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch


@cache
def fewest_rows(columns: int) -> int:
    """Returns from how many rows on this CPU's float32 products over `columns` elements round alike; 1: always.

    It is measured, on a product of the shape that narrows a transformer's wide layers. MKL on Intel processors sums
    products of fewer rows in another order (from 256 rows on alike over 1536 elements, from 512 on over 3072).
    """
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(_MOST, columns, generator=g), torch.randn(max(1, columns // 4), columns, generator=g)
    all_rows, fewest = torch.nn.functional.linear(x, weight), _MOST
    for rows in range(_MOST - 64, 0, -64):
        if not torch.equal(torch.nn.functional.linear(x[:rows], weight), all_rows[:rows]):
            return fewest
        fewest = rows
    return 1


def run_alike(batch: Tensor, run: Callable[[Tensor], Tensor], least: int = 1) -> Tensor:
    """Returns run(batch), in which a row of the batch (R, …) depends on no other row and not on R, to the bit.

    `run` gets a number of rows that rounds alike, at least `least`. A CPU's float64 products round by how threads share
    the rows, so there `run` gets `ROW_MULTIPLE` rows each time.
    """
    if batch.dtype == torch.float64 and batch.device.type == "cpu":
        parts = batch.split(ROW_MULTIPLE)
        return torch.cat([run(pad_rows(part))[: len(part)] for part in parts])
    return run(pad_rows(batch, -(-least // ROW_MULTIPLE) * ROW_MULTIPLE))[: len(batch)]
