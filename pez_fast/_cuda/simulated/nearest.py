"""The CUDA kernels' algorithm on the host, compiled from the same headers: for tests where there is no GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C
from pez_fast._shared.halves import half_unit_rows
from pez_fast._shared.memory import matrix
from pez_fast._shared.threads import threads

TILE, WIDTH = 128, 64  # as in csrc/cuda


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32]; see `half_unit_rows`."""
    return half_unit_rows(weight, ids, TILE, WIDTH)


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None, coarser: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `pez_fast._cuda.nearest.nearest`, on CPU tensors; `coarser` is added to the scan's bound, so that more is compared exactly."""
    unit, residual = prepared
    found, similarity = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x), dtype=torch.float32)
    state = torch.empty(len(x), dtype=torch.int32)
    _C.simulate_cuda(
        matrix(x), matrix(weight), ids.data_ptr(), len(ids), unit.data_ptr(), unit.shape[1], float(residual), coarser,
        found.data_ptr(), similarity.data_ptr(), state.data_ptr(), threads(),
    )  # fmt: skip
    if counts is not None:
        counts += torch.stack([(state == kind).sum() for kind in (1, 2, 3)])
    return found, similarity
