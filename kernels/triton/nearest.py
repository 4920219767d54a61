"""Nearest token in Triton: an fp16 scan on tensor cores with a bound on its error; near ties are compared exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without its rounding.
Three kernels run: `scan._nearest_query_kernel` rounds the rows to fp16 unit vectors, `scan._nearest_scan_…_kernel`
keeps the two best groups of every tile of tokens, and `decide._nearest_decide_kernel` decides. Nothing waits for the
GPU, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pez_fast._shared import arithmetic, resolve_ties
from pez_fast._shared.halves import half_unit_rows, in_chunks, scan_slack
from pez_fast._triton import tune
from pez_fast._triton.decide import _nearest_decide_kernel
from pez_fast._triton.scan import _nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel

ROWS = 16384  # rows searched at once


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (Kp, dp) float16, residual (1,) float32, norm (K,) float64].

    See `half_unit_rows`.
    """
    return half_unit_rows(weight, ids, tune.TILE, tune.WIDTH)


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, prepared -> ids (N,) int64, cosine (N,) float32.

    A row that is not finite gets id -1 and cosine NaN; a zero row gets ids[0] and cosine 0. `counts` (3,) int64 is
    increased by the numbers of rows that the scan decided, of rows with several candidates, and of rows of which whole
    tiles were looked at again.
    """

    def search(part: Tensor, found: Tensor, similarity: Tensor) -> Tensor:
        return _nearest_rows(part, weight, ids, prepared, found, similarity)

    return in_chunks(x, ROWS, search, counts)


def _nearest_rows(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], found: Tensor, similarity: Tensor
) -> Tensor:
    """Write found and similarity; return the state (n,) int32 of each row, as `_nearest_decide_kernel` describes it."""
    (unit, residual, norm), (n, d), width = prepared, x.shape, prepared[0].shape[1]
    rounded = queries(x, width)
    scan = tune.configuration(x.device, n, d, len(ids), lambda scan: scan_keys(rounded.query, unit, n, len(ids), scan))
    keys = scan_keys(rounded.query, unit, n, len(ids), scan)
    group_size, tiles = tune.group_size(n), keys.shape[1]
    slack = scan_slack(width, tune.capability(x.device), scan.block_v // group_size)
    tensors = (x, weight, ids, norm, rounded.query, unit, keys, rounded.error, rounded.norm, rounded.kind, residual)
    state = torch.empty(n, dtype=torch.int32, device=x.device)
    sizes = (len(ids), tiles, d, width, *x.stride(), *weight.stride())
    bounds = (slack, 2 * resolve_ties.float64_error(d), arithmetic.error(d))
    wide = torch.float64 in (x.dtype, weight.dtype)
    _nearest_decide_kernel[(n,)](
        *tensors,
        found,
        similarity,
        state,
        *sizes,
        *bounds,
        BLOCK_V=scan.block_v,
        GROUP_SIZE=group_size,
        BLOCK_T=min(1024, triton.next_power_of_2(tiles)),
        **decision_blocks(d, width, wide),
        num_warps=4,
        maxnreg=168 if wide or not tune.FITS_128 else 128,
        enable_fp_fusion=False,
    )
    return state


def decision_blocks(d: int, width: int, wide: bool) -> dict[str, int]:
    """Elements that the decision loads at once: of one row, of the rows of CHUNK tokens, and of these in double-double.

    It loads a row of up to 2048 elements at once, and of several rows as much as 128 registers hold (168 where `wide`,
    because a float64 takes two, and where Triton's code needs more).
    """
    block_d, block_w = triton.next_power_of_2(d), triton.next_power_of_2(width)
    chunk, chunk_w, chunk_d, ties_d = (
        (tune.TILE, 1024, 1024, 64) if tune.INTERPRETED else (16, 256, 64 if tune.FITS_128 and not wide else 32, 16)
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


class Queries(NamedTuple):
    """What `_nearest_query_kernel` writes of n rows; np: n padded."""

    query: Tensor  # (np, width) float16
    error: Tensor  # (np,) float32
    norm: Tensor  # (np,) float64
    kind: Tensor  # (np,) int32


def queries(x: Tensor, width: int) -> Queries:
    """x (n, d) -> the rows as fp16 unit vectors."""
    n, d = x.shape
    rows = tune.block_of_rows(n) if n <= tune.FEW else _padded(n, 256)
    made = Queries(
        torch.empty(rows, width, dtype=torch.float16, device=x.device),
        torch.empty(rows, dtype=torch.float32, device=x.device),
        torch.empty(rows, dtype=torch.float64, device=x.device),
        torch.empty(rows, dtype=torch.int32, device=x.device),
    )
    block_r = min(64, rows) if tune.INTERPRETED else 1
    _nearest_query_kernel[(rows // block_r,)](
        x,
        *made,
        n,
        d,
        width,
        *x.stride(),
        BLOCK_R=block_r,
        BLOCK_D=min(1024, triton.next_power_of_2(width)),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return made


def scan_keys(query: Tensor, unit: Tensor, n: int, tokens: int, scan: tune.Scan) -> Tensor:
    """query (np, dp) and unit (Kp, dp) float16 -> keys (n, tiles) int64 of the two best groups of each tile."""
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
        "GROUP_SIZE": tune.group_size(n),
        "DESCRIPTOR": scan.descriptor,
    }
    # 255 registers is the maximum. Without maxnreg, ptxas spills registers to fit more programs on a multiprocessor
    # than shared memory allows.
    options = {"num_warps": scan.warps, "num_stages": scan.stages, "maxnreg": 255, "enable_fp_fusion": False}
    if n <= tune.FEW:
        _nearest_scan_few_kernel[(tiles,)](*operands, keys, n, tiles, width, **blocks, **options)
    else:
        row_tiles = triton.cdiv(n, scan.block_n)
        programs = row_tiles * tiles
        if scan.persistent:
            programs = min(programs, tune.multiprocessors(query.device))
        _nearest_scan_many_kernel[(programs,)](
            *operands, keys, n, row_tiles, tiles, width, **blocks, SWIZZLE=scan.swizzle, FLATTEN=scan.flatten, **options
        )
    return keys


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
