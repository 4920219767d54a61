"""The vocabulary as fp16 unit rows for the scans on GPUs, and the bounds on their rounding and on a scanned score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pez_fast._shared.resolve_ties import power_scaled

ELEMENTS = 1 << 22  # elements of the table prepared at once


def half_unit_rows(weight: Tensor, ids: Tensor, tile: int, width: int) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32, norm (K,) float64].

    unit: the rows divided by their norm and rounded. Zeros pad the columns to a multiple of `width`; copies of the last
    row pad the rows to a multiple of `tile`. A copy scores like a token of its tile, so no scan has to tell the padding
    from tokens. residual: at least the length of what rounding took from any row. norm: of each row (of a float64 row:
    after `power_scaled`).
    """
    k, d = len(ids), weight.shape[1]
    unit = torch.zeros(-(-k // tile) * tile, -(-d // width) * width, dtype=torch.float16, device=weight.device)
    residual = torch.zeros((), dtype=torch.float64, device=weight.device)
    norm = torch.empty(k, dtype=torch.float64, device=weight.device)
    step = max(1, ELEMENTS // d)
    for start in range(0, k, step):
        rows = power_scaled(weight[ids[start : start + step]])
        length = rows.norm(dim=-1)
        norm[start : start + step] = length
        exact = rows / torch.where(length > 0, length, 1)[:, None]
        rounded = unit[start : start + step, :d][: len(exact)].copy_(exact)
        residual = torch.maximum(residual, (exact - rounded.double()).norm(dim=-1).max())
    unit[k:] = unit[k - 1]
    # 1e-6 covers the rounding to float32, 1e-12 that of float64.
    return [unit, (residual * (1 + 1e-6) + 1e-12).float()[None], norm]


def scan_slack(width: int, capability: tuple[int, int], groups: int) -> float:
    """The part of a scanned score's error beside the rounding to fp16: tensor-core sums and the low bits of a key.

    Tensor cores add a block of products and the sum so far in fixed point, under the largest exponent of any, and
    truncate what lies below the last bit; then they truncate the sum to float32. Up to 8.9 a block is 8 products with
    24 bits behind the point, from 9.0 on 16 products with 25 bits (Xie et al. 2025, MMA-Sim, arXiv 2511.10909, equal to
    the hardware to the bit). Sums of unit vectors stay below 2, so a block of n loses less than (n + 1) 2^-bits +
    2^-23: 0.69 and 0.33 times 2^-23 for each of `width` elements. The low bits of a key hold the number of one of the
    `groups` of a tile, which changes the score by less than `groups` units of 2^-23. Four more units cover the float32
    arithmetic of the bound itself, and 1% covers that the vectors' lengths are not quite 1.
    """
    block, bits = (8, 24) if capability < (9, 0) else (16, 25)
    added = width / block * ((block + 1) * 2.0**-bits + 2.0**-23)
    return 1.01 * (added + (groups + 4) * 2.0**-23)


def widened(x: Tensor) -> Tensor:
    """x (N, d) as contiguous float32, exactly, so that kernels read 16 bytes at a time; float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float().contiguous()


def in_chunks(
    x: Tensor, rows: int, search: Callable[[Tensor, Tensor, Tensor], Tensor], counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Search for x (N, d) on a GPU, `rows` rows at a time: ids (N,) int64, cosine (N,) float32.

    `search(x, ids, cosine)` writes the ids and cosines of its rows and returns their states; `counts` (3,) int64 is
    increased by the numbers of states 1 to 3.
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
