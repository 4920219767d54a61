"""Nearest token in CUDA C++: a fp16 scan on tensor cores with a bound on its error, near ties compared exactly on the GPU.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without its mistakes. A few rows take one
launch (csrc/cuda/few.cu), many take three (nearest.cu, with scan_sm90.cu or scan_sm80.cu). Nothing waits for the GPU, so that a call
can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pez_fast import _C_cuda
from pez_fast._shared.halves import half_unit_rows, in_parts
from pez_fast._shared.memory import matrix

ROWS = 16384  # rows searched at once
PADDING = 256  # rows to whose multiple the queries are padded
WIDTH = 64  # elements to whose multiple rows are padded


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32]; see `half_unit_rows`."""
    return half_unit_rows(weight, ids, _C_cuda.TILE, WIDTH)


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, what was prepared -> ids (N,) int64, cosine (N,) float32.

    A row that is not finite gets id -1 and cosine NaN, a zero row ids[0] and 0. `counts` (3,) int64 is added to: rows that
    the scan decided, rows with several candidates, and rows of which whole tiles had to be compared.
    """

    def search(part: Tensor, found: Tensor, similarity: Tensor) -> Tensor:
        return _nearest_rows(part, weight, ids, prepared, found, similarity)

    return in_parts(x, ROWS, search, counts)


def _nearest_rows(x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], found: Tensor, similarity: Tensor) -> Tensor:
    unit, residual = prepared
    n, device, stream = len(x), x.device, torch.cuda.current_stream(x.device)
    keys = torch.empty(n, -(-len(ids) // _C_cuda.TILE), 2, dtype=torch.int32, device=device)
    state = torch.empty(n, dtype=torch.int32, device=device)
    table = unit.data_ptr(), *unit.shape, residual.data_ptr()
    answer = found.data_ptr(), similarity.data_ptr(), state.data_ptr()
    given = device.index, matrix(x), matrix(weight), ids.data_ptr(), len(ids), table
    if n <= _C_cuda.few_rows(unit.shape[1], device.index):
        ready = _ready(device, stream.cuda_stream)
        _C_cuda.nearest_few(*given, keys.data_ptr(), ready.data_ptr(), answer, stream.cuda_stream)
    else:
        rows = -(-n // PADDING) * PADDING
        query = torch.empty(rows, unit.shape[1], dtype=torch.float16, device=device)
        error = torch.empty(rows, dtype=torch.float32, device=device)
        _C_cuda.nearest_many(
            *given, query.data_ptr(), error.data_ptr(), keys.data_ptr(), answer, stream.cuda_stream
        )
    return state


def _ready(device: torch.device, stream: int) -> Tensor:
    """The counter of blocks that are done: 0 between launches. One for each stream; a graph, which may run on any, gets its own."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    return _ready_of(device, stream)


@cache
def _ready_of(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)
