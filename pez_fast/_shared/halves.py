"""The vocabulary as fp16 unit rows with a bound on their rounding, as the scans on GPUs read it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pez_fast._shared.settle import unit_rows

ELEMENTS = 1 << 22  # elements of the table prepared at once


def half_unit_rows(weight: Tensor, ids: Tensor, tile: int, width: int) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32].

    unit: these rows divided by their norm and rounded, padded with zeros to multiples of `tile` and `width`.
    residual: at least the length of what the rounding took from any row.
    """
    k, d = len(ids), weight.shape[1]
    unit = torch.zeros(-(-k // tile) * tile, -(-d // width) * width, dtype=torch.float16, device=weight.device)
    residual = torch.zeros((), dtype=torch.float64, device=weight.device)
    step = max(1, ELEMENTS // d)
    for start in range(0, k, step):
        exact = unit_rows(weight[ids[start : start + step]])
        rounded = unit[start : start + step, :d][: len(exact)].copy_(exact)
        residual = torch.maximum(residual, (exact - rounded.double()).norm(dim=-1).max())
    # 1e-6 is more than float32 rounds by, 1e-12 more than float64 did.
    return [unit, (residual * (1 + 1e-6) + 1e-12).float()[None]]


def in_parts(x: Tensor, rows: int, search: Callable[[Tensor, Tensor, Tensor], Tensor], counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The search of x (N, d) on a GPU, so many rows at once: ids (N,) int64, cosine (N,) float32.

    `search(x, ids, cosine)` writes the two of its rows and gives their states, 1 to 3 for what `counts` (3,) int64 counts.
    """
    found = torch.empty(len(x), dtype=torch.int64, device=x.device)
    similarity = torch.empty(len(x), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            state = search(x[part], found[part], similarity[part])
            if counts is not None:
                counts += torch.stack([(state == kind).sum() for kind in (1, 2, 3)])
    return found, similarity
