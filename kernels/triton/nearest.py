"""Nearest token in Triton: a fp16 scan on tensor cores with a bound on its error, near ties compared exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without its mistakes. Three kernels:
the rows as fp16 unit vectors (`scan._nearest_query_kernel`), the two best tokens of every tile (`scan._nearest_scan_…_kernel`), and
the decision (`finish._nearest_finish_kernel`). Nothing waits for the GPU, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pez_fast._shared import arithmetic, settle
from pez_fast._shared.halves import half_unit_rows, in_parts
from pez_fast._triton import tune
from pez_fast._triton.finish import _nearest_finish_kernel
from pez_fast._triton.scan import _nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel

ROWS = 16384  # rows searched at once


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32]; see `half_unit_rows`."""
    return half_unit_rows(weight, ids, tune.TILE, tune.WIDTH)


def nearest(x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, what was prepared -> ids (N,) int64, cosine (N,) float32.

    A row that is not finite gets id -1 and cosine NaN, a zero row ids[0] and 0. `counts` (3,) int64 is added to: rows that
    the scan decided, rows with several candidates, and rows of which whole tiles had to be compared.
    """

    def search(part: Tensor, found: Tensor, similarity: Tensor) -> Tensor:
        return _nearest_rows(part, weight, ids, prepared, found, similarity)

    return in_parts(x, ROWS, search, counts)


def scan_slack(d: int, block_v: int) -> float:
    """How much of a scanned score's error comes from adding up in float32 (1.25 d 2^-23 on tensor cores) and from the key's low bits."""
    return 1.01 * (1.25 * d + block_v) * 2.0**-23


def _nearest_rows(x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], found: Tensor, similarity: Tensor) -> Tensor:
    """Write found and similarity; the state of each row, as `_nearest_finish_kernel` says."""
    (unit, residual), (n, d) = prepared, x.shape
    query, error, state = queries(x, unit.shape[1])
    scan = tune.configuration(x.device, n, d, len(ids), lambda scan: scan_keys(query, unit, n, len(ids), scan))
    keys = scan_keys(query, unit, n, len(ids), scan)
    block_d = triton.next_power_of_2(d)
    chunk = (tune.TILE, min(64, block_d)) if tune.INTERPRETED else (32, 8)
    _nearest_finish_kernel[(n,)](
        x, weight, ids, keys, error, state, residual, found, similarity,
        len(ids), keys.shape[1], d, *x.stride(), *weight.stride(),
        scan_slack(d, scan.block_v), 2 * settle.float64_error(d), arithmetic.error(d),
        BLOCK_V=scan.block_v, BLOCK_T=min(1024, triton.next_power_of_2(keys.shape[1])), BLOCK_D=min(512, block_d),
        CHUNK=chunk[0], CHUNK_D=chunk[1], CHUNK_LEVELS=chunk[1].bit_length() - 1,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return state[:n]


def queries(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (n, d) -> query (np, width) float16, error (np,) float32, state (np,) int32: see `_nearest_query_kernel`."""
    n, d = x.shape
    rows = tune.block_of_rows(n) if n <= tune.FEW else _padded(n, 256)
    query = torch.empty(rows, width, dtype=torch.float16, device=x.device)
    error = torch.empty(rows, dtype=torch.float32, device=x.device)
    state = torch.empty(rows, dtype=torch.int32, device=x.device)
    block_r = min(64, rows) if tune.INTERPRETED else 1
    _nearest_query_kernel[(rows // block_r,)](
        x, query, error, state, n, d, width, *x.stride(),
        BLOCK_R=block_r, BLOCK_D=min(1024, triton.next_power_of_2(width)), num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return query, error, state


def scan_keys(query: Tensor, unit: Tensor, n: int, tokens: int, scan: tune.Scan) -> Tensor:
    """query (np, dp) and unit (Kp, dp) float16 -> keys (n, tiles, 2) int32 of the two best tokens of each tile, the better first."""
    width = unit.shape[1]
    tiles = triton.cdiv(tokens, scan.block_v)
    keys = torch.empty(n, tiles, 2, dtype=torch.int32, device=query.device)
    operands: tuple = (query, unit)
    if scan.descriptor:
        operands = (
            TensorDescriptor.from_tensor(query, [scan.block_n, scan.block_k]),
            TensorDescriptor.from_tensor(unit, [scan.block_v, scan.block_k]),
        )
    blocks = {"BLOCK_N": scan.block_n, "BLOCK_V": scan.block_v, "BLOCK_K": scan.block_k, "DESCRIPTOR": scan.descriptor}
    options = {"num_warps": scan.warps, "num_stages": scan.stages, "enable_fp_fusion": False}
    if n <= tune.FEW:
        _nearest_scan_few_kernel[(tiles,)](*operands, keys, n, tokens, tiles, width, **blocks, **options)
    else:
        row_tiles = triton.cdiv(n, scan.block_n)
        programs = row_tiles * tiles
        if scan.persistent:
            programs = min(programs, tune.multiprocessors(query.device))
        _nearest_scan_many_kernel[(programs,)](
            *operands, keys, n, tokens, row_tiles, tiles, width, **blocks, GROUP=scan.group, FLATTEN=scan.flatten, **options
        )
    return keys


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
