"""The scan: fp16 unit rows times the fp16 unit table on tensor cores; it keeps the top-2 group keys of each tile.

A tile has GROUPS groups of GROUP_SIZE tokens; group g holds the tokens g, g + GROUPS, g + 2 GROUPS and so on. The score
of a group is its best token's, a float32 whose lowest bits are replaced by g, so that one maximum finds the best score
and its group. Small groups make the decision faster, large groups the scan.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pez_fast._triton.rows import load_rows, row_exponents

EMPTY_KEY = tl.constexpr(-0x7FFFFF00800000)  # in place of a key behind the last tile: twice the float32 -inf


@triton.jit(do_not_specialize=["n"])
def _nearest_query_kernel(
    x, query, error, norm, kinds, n, d, width, stride_n, stride_d, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Same as `norm = x.norm(); unit = x / norm; query = unit.half(); error = (unit - query).norm()`, in float64.

    One program: BLOCK_R rows of x (n, d). Writes query (…, width) fp16, zero beyond n and d; error (…,) float32,
    rounded up; norm (…,) float64, of float64 rows as `row_exponents` scales them; kinds (…,) int32: 0 where a row has a
    direction, 1 where it is zero, 2 where it is not finite. The query is zero where the kind is not 0.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < n
    pointers = x + rows.to(tl.int64) * stride_n
    exponent = row_exponents(pointers, valid, d, stride_d, BLOCK_R, BLOCK_D)
    squares = tl.full([BLOCK_R, BLOCK_D], 0, tl.float64)
    for start in range(0, d, BLOCK_D):
        values = load_rows(pointers, valid, start, d, stride_d, exponent, BLOCK_D)
        squares += values * values
    square = tl.sum(squares, 1)
    # No element's square over- or underflows, so the sum is 0 only for a zero row.
    kind = tl.where(square == 0, 1, tl.where(square < float("inf"), 0, 2))
    length = tl.sqrt(tl.where(kind == 0, square, 1.0))
    tl.store(norm + rows, length)
    inverse = 1 / length
    lost = tl.full([BLOCK_R, BLOCK_D], 0, tl.float64)
    for start in range(0, width, BLOCK_D):
        values = load_rows(pointers, valid, start, d, stride_d, exponent, BLOCK_D)
        unit = tl.where((kind == 0)[:, None], values * inverse[:, None], 0.0)
        half = unit.to(tl.float32).to(tl.float16)
        lost += (unit - half.to(tl.float32).to(tl.float64)) * (unit - half.to(tl.float32).to(tl.float64))
        columns = start + tl.arange(0, BLOCK_D)
        tl.store(query + rows.to(tl.int64)[:, None] * width + columns[None, :], half, mask=(columns < width)[None, :])
    # 1e-6 covers the rounding to float32, 1e-12 that of float64.
    tl.store(error + rows, (tl.sqrt(tl.sum(lost, 1)) * (1 + 1e-6) + 1e-12).to(tl.float32))
    tl.store(kinds + rows, kind)


@triton.jit
def first_score(key):
    """The better score of a key."""
    return key.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def second_score(key):
    """The other score of a key."""
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def top2_groups(score, BLOCK_V: tl.constexpr, GROUP_SIZE: tl.constexpr, AXIS: tl.constexpr):
    """The int64 keys of the top-2 groups along AXIS of score (BLOCK_V, N) or (N, BLOCK_V), the better one low."""
    GROUPS: tl.constexpr = BLOCK_V // GROUP_SIZE
    if GROUP_SIZE > 1:
        other: tl.constexpr = score.shape[1 - AXIS]
        score = tl.max(
            tl.reshape(score, [GROUP_SIZE, GROUPS, other] if AXIS == 0 else [other, GROUP_SIZE, GROUPS]), AXIS
        )
    group = tl.expand_dims(tl.arange(0, GROUPS), 1 - AXIS)
    score = ((score.to(tl.int32, bitcast=True) & -GROUPS) | group).to(tl.float32, bitcast=True)
    first = tl.max(score, AXIS)
    # All scores differ in their low bits, so this removes exactly one.
    second = tl.max(tl.where(score == tl.expand_dims(first, AXIS), float("-inf"), score), AXIS)
    low = first.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return (second.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low


@triton.jit
def _load_tile(source, row, k, width, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, DESCRIPTOR: tl.constexpr):
    if DESCRIPTOR:
        return source.load([row, k])
    else:
        rows = row + tl.arange(0, BLOCK).to(tl.int64)
        return tl.load(source + rows[:, None] * width + (k + tl.arange(0, BLOCK_K))[None, :])


@triton.jit
def _tile_scores(a, a_row, b, b_row, width, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
                 DESCRIPTOR: tl.constexpr):  # fmt: skip
    """Same as `a[a_row : a_row + BLOCK_A] @ b[b_row : b_row + BLOCK_B].T`: (BLOCK_A, BLOCK_B) float32.

    a and b (…, width) fp16, as pointers or as tensor descriptors.
    """
    score = tl.full([BLOCK_A, BLOCK_B], 0, tl.float32)
    for k in range(0, width, BLOCK_K):
        left = _load_tile(a, a_row, k, width, BLOCK_A, BLOCK_K, DESCRIPTOR)
        right = _load_tile(b, b_row, k, width, BLOCK_B, BLOCK_K, DESCRIPTOR)
        score = tl.dot(left, tl.trans(right), score)
    return score


@triton.jit(do_not_specialize=["n", "tiles"])
def _nearest_scan_few_kernel(
    query, table, keys, n, tiles, width,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_SIZE: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):  # fmt: skip
    """Same as `(table @ query.T)` then the two best groups of every BLOCK_V tokens. One program: all rows, one tile.

    query (BLOCK_N, width) and table (tiles * BLOCK_V, width) fp16, as pointers or as tensor descriptors. Writes keys
    (n, tiles) int64. Tokens are the long side (M) of the product: the table is read once.
    """
    tile = tl.program_id(0)
    score = _tile_scores(table, tile * BLOCK_V, query, 0, width, BLOCK_V, BLOCK_N, BLOCK_K, DESCRIPTOR)
    row = tl.arange(0, BLOCK_N)
    tl.store(keys + row.to(tl.int64) * tiles + tile, top2_groups(score, BLOCK_V, GROUP_SIZE, 0), mask=row < n)


@triton.jit(do_not_specialize=["n", "row_tiles", "tiles"])
def _nearest_scan_many_kernel(
    query, table, keys, n, row_tiles, tiles, width,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_SIZE: tl.constexpr,
    DESCRIPTOR: tl.constexpr, SWIZZLE: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Same as `query @ table.T` then the two best groups of every BLOCK_V tokens. One program: many pairs of tiles.

    Arguments as of `_nearest_scan_few_kernel`, query (row_tiles * BLOCK_N, width). SWIZZLE row tiles follow one another
    over one tile of tokens, so that both are in the L2 cache. With FLATTEN the program loads the tiles of its next pair
    while it finds the best groups of this one.
    """
    for pair in tl.range(tl.program_id(0), row_tiles * tiles, tl.num_programs(0), flatten=FLATTEN):
        start = pair // (SWIZZLE * tiles) * SWIZZLE
        height = min(row_tiles - start, SWIZZLE)
        within = pair % (SWIZZLE * tiles)
        first_row = (start + within % height) * BLOCK_N
        tile = within // height
        score = _tile_scores(query, first_row, table, tile * BLOCK_V, width, BLOCK_N, BLOCK_V, BLOCK_K, DESCRIPTOR)
        row = first_row + tl.arange(0, BLOCK_N)
        tl.store(keys + row.to(tl.int64) * tiles + tile, top2_groups(score, BLOCK_V, GROUP_SIZE, 1), mask=row < n)
