"""The CUDA kernels' algorithm on the host, compiled from the same headers: for machines without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C
from pez_fast._shared.halves import half_unit_rows, scan_slack, widened
from pez_fast._shared.pointers import matrix
from pez_fast._shared.threads import threads

TILE, GROUPS, WIDTH = 128, 32, 64  # as in csrc/cuda
CARDS = {
    "ampere": ((8, 0), (8, 24)),
    "ada": ((8, 9), (8, 24)),
    "hopper": ((9, 0), (16, 25)),
}  # compute capability; how its tensor cores add: (block, bits)


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32, norm (K,) float64].

    See `half_unit_rows`.
    """
    return half_unit_rows(weight, ids, TILE, WIDTH)


def nearest(
    x: Tensor,
    weight: Tensor,
    ids: Tensor,
    prepared: list[Tensor],
    counts: Tensor | None = None,
    coarser: float = 0.0,
    card: str = "hopper",
) -> tuple[Tensor, Tensor]:
    """As `pez_fast._cuda.nearest.nearest`, on CPU tensors.

    `coarser` is added to the scan's bound, so that more tokens are compared exactly.
    """
    (unit, residual, norm), x = prepared, widened(x)
    found, similarity = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x), dtype=torch.float32)
    state = torch.empty(len(x), dtype=torch.int32)
    capability, rule = CARDS[card]
    bounds = float(residual), scan_slack(unit.shape[1], capability, GROUPS), coarser
    out = found.data_ptr(), similarity.data_ptr(), state.data_ptr()
    table = ids.data_ptr(), len(ids), norm.data_ptr(), unit.data_ptr(), unit.shape[1]
    _C.simulate_cuda(matrix(x), matrix(weight), *table, bounds, rule, out, threads())
    if counts is not None:
        counts += torch.stack([(state == kind).sum() for kind in (1, 2, 3)])
    return found, similarity
