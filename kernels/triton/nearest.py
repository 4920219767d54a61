"""Nearest token in Triton: a fp16 scan on tensor cores with a bound on its error, near ties compared exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without its mistakes. Three kernels:
the rows as fp16 unit vectors (`scan._nearest_query_kernel`), the two best places of every tile (`scan._nearest_scan_…_kernel`), and
the decision (`decide._nearest_decide_kernel`). Nothing waits for the GPU, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pez_fast._shared import arithmetic, settle
from pez_fast._shared.halves import half_unit_rows, in_parts, scan_slack
from pez_fast._triton import tune
from pez_fast._triton.decide import _nearest_decide_kernel
from pez_fast._triton.scan import _nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel

ROWS = 16384  # rows searched at once


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32, norm (K,) float64]; see `half_unit_rows`."""
    return half_unit_rows(weight, ids, tune.TILE, tune.WIDTH)


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, what was prepared -> ids (N,) int64, cosine (N,) float32.

    A row that is not finite gets id -1 and cosine NaN, a zero row ids[0] and 0. `counts` (3,) int64 is added to: rows that
    the scan decided, rows with several candidates, and rows of which whole tiles were looked at again.
    """

    def search(part: Tensor, found: Tensor, similarity: Tensor) -> Tensor:
        return _nearest_rows(part, weight, ids, prepared, found, similarity)

    return in_parts(x, ROWS, search, counts)


def _nearest_rows(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], found: Tensor, similarity: Tensor
) -> Tensor:
    """Write found and similarity; the state of each row, as `_nearest_decide_kernel` says."""
    (unit, residual, norm), (n, d), width = prepared, x.shape, prepared[0].shape[1]
    query, error, x_norm, state = queries(x, width)
    scan = tune.configuration(x.device, n, d, len(ids), lambda scan: scan_keys(query, unit, n, len(ids), scan))
    keys = scan_keys(query, unit, n, len(ids), scan)
    slack = scan_slack(width, tune.capability(x.device), scan.block_v // tune.per_key(n))
    wide = torch.float64 in (x.dtype, weight.dtype)
    _nearest_decide_kernel[(n,)](
        x,
        weight,
        ids,
        norm,
        query,
        unit,
        keys,
        error,
        x_norm,
        state,
        residual,
        found,
        similarity,
        len(ids),
        keys.shape[1],
        d,
        width,
        *x.stride(),
        *weight.stride(),
        slack,
        2 * settle.float64_error(d),
        arithmetic.error(d),
        BLOCK_V=scan.block_v,
        PER_KEY=tune.per_key(n),
        BLOCK_T=min(1024, triton.next_power_of_2(keys.shape[1])),
        **decision_blocks(d, width, wide),
        num_warps=4,
        maxnreg=168 if wide else 128,
        enable_fp_fusion=False,
    )
    return state[:n]


def decision_blocks(d: int, width: int, wide: bool) -> dict[str, int]:
    """What the decision loads at once: of a row, of the rows of CHUNK tokens, and of those in double-double.

    A row up to 2048 wide in one go, and of several what 128 registers hold (168 where `wide`, a float64 being two of them).
    """
    block_d, block_w = triton.next_power_of_2(d), triton.next_power_of_2(width)
    chunk, chunk_w, chunk_d, ties_d = (
        (tune.TILE, 1024, 1024, 64) if tune.INTERPRETED else (16, 256, 32 if wide else 64, 16)
    )
    ties_d = min(ties_d, block_d)
    return {
        "BLOCK_W": min(1024, block_w),
        "BLOCK_D": min(512 if wide else 2048, block_d),
        "CHUNK": chunk,
        "CHUNK_W": min(chunk_w, block_w),
        "CHUNK_D": min(chunk_d, block_d),
        "TIES_D": ties_d,
        "LEVELS": ties_d.bit_length() - 1,
    }


def queries(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (n, d) -> query (np, width) float16, error (np,) float32, norm (np,) float64, state (np,) int32: see `_nearest_query_kernel`."""
    n, d = x.shape
    rows = tune.block_of_rows(n) if n <= tune.FEW else _padded(n, 256)
    query = torch.empty(rows, width, dtype=torch.float16, device=x.device)
    error = torch.empty(rows, dtype=torch.float32, device=x.device)
    norm = torch.empty(rows, dtype=torch.float64, device=x.device)
    state = torch.empty(rows, dtype=torch.int32, device=x.device)
    block_r = min(64, rows) if tune.INTERPRETED else 1
    _nearest_query_kernel[(rows // block_r,)](
        x,
        query,
        error,
        norm,
        state,
        n,
        d,
        width,
        *x.stride(),
        BLOCK_R=block_r,
        BLOCK_D=min(1024, triton.next_power_of_2(width)),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return query, error, norm, state


def scan_keys(query: Tensor, unit: Tensor, n: int, tokens: int, scan: tune.Scan) -> Tensor:
    """query (np, dp) and unit (Kp, dp) float16 -> keys (n, tiles) int64 of the two best places of each tile."""
    width = unit.shape[1]
    tiles = triton.cdiv(tokens, scan.block_v)
    keys = torch.empty(n, tiles, dtype=torch.int64, device=query.device)
    operands: tuple = (query, unit)
    if scan.descriptor:
        operands = (
            TensorDescriptor.from_tensor(query, [scan.block_n, scan.block_k]),
            TensorDescriptor.from_tensor(unit, [scan.block_v, scan.block_k]),
        )
    blocks = {
        "BLOCK_N": scan.block_n,
        "BLOCK_V": scan.block_v,
        "BLOCK_K": scan.block_k,
        "PER_KEY": tune.per_key(n),
        "DESCRIPTOR": scan.descriptor,
    }
    # 255 registers are the most there are. Unasked, ptxas spills some to make room for programs that shared memory has no room for.
    options = {"num_warps": scan.warps, "num_stages": scan.stages, "maxnreg": 255, "enable_fp_fusion": False}
    if n <= tune.FEW:
        _nearest_scan_few_kernel[(tiles,)](*operands, keys, n, tiles, width, **blocks, **options)
    else:
        row_tiles = triton.cdiv(n, scan.block_n)
        programs = row_tiles * tiles
        if scan.persistent:
            programs = min(programs, tune.multiprocessors(query.device))
        _nearest_scan_many_kernel[(programs,)](
            *operands, keys, n, row_tiles, tiles, width, **blocks, GROUP=scan.group, FLATTEN=scan.flatten, **options
        )
    return keys


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
