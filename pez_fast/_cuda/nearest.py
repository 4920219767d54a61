"""Nearest token in CUDA C++: an fp16 scan on tensor cores with a bound on its error, then an exact comparison.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without its rounding.
Three kernels run (csrc/cuda): query.cu rounds the rows to fp16 unit vectors; few.cu, scan_sm90.cu or scan_sm80.cu keeps
the two best groups of every tile of tokens; decide.cu decides. Nothing waits for the GPU, so a call can be captured in
a CUDA graph.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pez_fast import _C_cuda
from pez_fast._shared.halves import half_unit_rows, in_chunks, scan_slack, widened
from pez_fast._shared.pointers import matrix

ROWS = 16384  # rows searched at once
MOST_KEYS = 1 << 30  # in one launch, which numbers the keys in 32 bits


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32, norm (K,) float64].

    See `half_unit_rows`.
    """
    return half_unit_rows(weight, ids, _C_cuda.TILE, _C_cuda.WIDTH)


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, prepared -> ids (N,) int64, cosine (N,) float32.

    A row that is not finite gets id -1 and cosine NaN; a zero row gets ids[0] and cosine 0. `counts` (3,) int64 is
    increased by the numbers of rows that the scan decided, of rows with several candidates, and of rows of which whole
    tiles were looked at again.
    """

    def search(part: Tensor, found: Tensor, similarity: Tensor) -> Tensor:
        return launch(part, weight, ids, prepared, found, similarity).state

    return in_chunks(widened(x), min(ROWS, MOST_KEYS // _tiles(ids)), search, counts)


class Launched(NamedTuple):
    """The buffers that the kernels write for n rows; np: n padded."""

    query: Tensor  # (np, dp) float16
    rounded: Tensor  # (np, 2) float64, as `Rounded` in csrc/cuda/query.h
    keys: Tensor  # (n, tiles, 2) float32, as in csrc/cuda/keys.h
    state: Tensor  # (n,) int32


def launch(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], found: Tensor, similarity: Tensor
) -> Launched:
    """Launch the kernels for x (n, d), not narrower than float32, on the current stream.

    They write found (n,) and similarity (n,), and the buffers that are returned.
    """
    unit, residual, norm = prepared
    n, device, rows, width = len(x), x.device, _C_cuda.padded_rows(len(x)), unit.shape[1]
    made = Launched(
        torch.empty(rows, width, dtype=torch.float16, device=device),
        torch.empty(rows, 2, dtype=torch.float64, device=device),
        torch.empty(n, _tiles(ids), 2, dtype=torch.float32, device=device),
        torch.empty(n, dtype=torch.int32, device=device),
    )
    table = (
        ids.data_ptr(),
        len(ids),
        norm.data_ptr(),
        unit.data_ptr(),
        *unit.shape,
        residual.data_ptr(),
        _slack(width, device),
    )
    buffers = made.query.data_ptr(), made.rounded.data_ptr(), made.keys.data_ptr()
    answer = found.data_ptr(), similarity.data_ptr(), made.state.data_ptr()
    stream = torch.cuda.current_stream(device).cuda_stream
    _C_cuda.nearest(device.index, matrix(x), matrix(weight), table, buffers, answer, stream)
    return made


def stages(x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor]) -> dict[str, Tensor]:
    """What each kernel writes for x (n, d), n at most `ROWS`, for debugging.

    From the query kernel: query (np, dp) float16, zero in rows from n on, error (np,) float32, kind (np,) int32 (0
    directed, 1 zero, 2 not finite) and norm (np,) float64. From the scan: keys (n, tiles, 2) float32. From the
    decision: found, similarity and state (n,).
    """
    found = torch.empty(len(x), dtype=torch.int64, device=x.device)
    similarity = torch.empty(len(x), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        made = launch(widened(x), weight, ids, prepared, found, similarity)
    error, kind, norm = made.rounded.view(torch.float32)[:, 0], made.rounded.view(torch.int32)[:, 1], made.rounded[:, 1]
    return {
        "query": made.query,
        "error": error,
        "kind": kind,
        "norm": norm,
        "keys": made.keys,
        "found": found,
        "similarity": similarity,
        "state": made.state,
    }


def _tiles(ids: Tensor) -> int:
    return -(-len(ids) // _C_cuda.TILE)


@cache
def _slack(width: int, device: torch.device) -> float:
    return scan_slack(width, torch.cuda.get_device_capability(device), _C_cuda.GROUPS)
