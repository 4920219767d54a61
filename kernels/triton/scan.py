"""The scan: fp16 unit rows against the fp16 unit table on tensor cores, of every tile of tokens the two best scores.

The tokens of a tile share places: PLACES of them, place p being that of the tokens p, p + PLACES, p + 2 PLACES and so on. A place's
score is the best of its tokens'; the lowest bits of the float32, as many as number the places, are replaced by p. So one maximum
finds the best score and where it is. Few tokens to a key make the decision shorter, many the scan.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pez_fast._triton.rows import load_rows, row_exponents

NOTHING = tl.constexpr(-0x7FFFFF00800000)  # the key of what is no tile: twice the float32 -inf


@triton.jit(do_not_specialize=["n"])
def _nearest_query_kernel(
    x,
    query,
    error,
    norm,
    state,
    n,
    d,
    width,
    stride_n,
    stride_d,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Same as `norm = x.norm(); unit = x / norm; query = unit.half(); error = (unit - query).norm()`, in float64.

    One program: BLOCK_R rows of x (n, d). Writes query (…, width) fp16, zero beyond n and d; error (…,) float32, rounded up;
    norm (…,) float64, of float64 rows as `row_exponents` scales them; state (…,) int32: 0 where a row has a direction, 1 where it
    is zero, 2 where it is not finite; the query is zero there.
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
    # No element's square over- or underflows, so the sum tells.
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
    # 1e-6 is more than float32 rounds by, 1e-12 more than float64 did.
    tl.store(error + rows, (tl.sqrt(tl.sum(lost, 1)) * (1 + 1e-6) + 1e-12).to(tl.float32))
    tl.store(state + rows, kind)


@triton.jit
def first_score(key):
    """The better score of a key."""
    return key.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def second_score(key):
    """The other score of a key."""
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def two_best(score, BLOCK_V: tl.constexpr, PER_KEY: tl.constexpr, AXIS: tl.constexpr):
    """The keys, int64, of the two best places along AXIS of score (BLOCK_V, N) or (N, BLOCK_V): the better in the low half."""
    PLACES: tl.constexpr = BLOCK_V // PER_KEY
    if PER_KEY > 1:
        other: tl.constexpr = score.shape[1 - AXIS]
        score = tl.max(tl.reshape(score, [PER_KEY, PLACES, other] if AXIS == 0 else [other, PER_KEY, PLACES]), AXIS)
    place = tl.expand_dims(tl.arange(0, PLACES), 1 - AXIS)
    score = ((score.to(tl.int32, bitcast=True) & -PLACES) | place).to(tl.float32, bitcast=True)
    first = tl.max(score, AXIS)
    # Scores differ in their low bits, so that this takes away one.
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


@triton.jit(do_not_specialize=["n", "tiles"])
def _nearest_scan_few_kernel(
    query,
    table,
    keys,
    n,
    tiles,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PER_KEY: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Same as `(table @ query.T)` then the two best of every BLOCK_V tokens. One program: all rows, one tile of tokens.

    query (BLOCK_N, width) and table (tiles * BLOCK_V, width) fp16, as pointers or as descriptors. Writes keys (n, tiles) int64.
    Tokens are the long side of the product: the table is read once.
    """
    tile = tl.program_id(0)
    score = tl.full([BLOCK_V, BLOCK_N], 0, tl.float32)
    for k in range(0, width, BLOCK_K):
        rows = _load_tile(table, tile * BLOCK_V, k, width, BLOCK_V, BLOCK_K, DESCRIPTOR)
        queries = _load_tile(query, 0, k, width, BLOCK_N, BLOCK_K, DESCRIPTOR)
        score = tl.dot(rows, tl.trans(queries), score)
    row = tl.arange(0, BLOCK_N)
    tl.store(keys + row.to(tl.int64) * tiles + tile, two_best(score, BLOCK_V, PER_KEY, 0), mask=row < n)


@triton.jit(do_not_specialize=["n", "row_tiles", "tiles"])
def _nearest_scan_many_kernel(
    query,
    table,
    keys,
    n,
    row_tiles,
    tiles,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PER_KEY: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Same as `(query @ table.T)` then the two best of every BLOCK_V tokens. One program: every so many-th pair of tiles.

    Arguments as of `_nearest_scan_few_kernel`, query (row_tiles * BLOCK_N, width). GROUP tiles of rows meet a tile of
    tokens one after the other, so that both are found in the L2 cache. With FLATTEN the next pair's tiles are fetched while the
    best of this one are found.
    """
    for pair in tl.range(tl.program_id(0), row_tiles * tiles, tl.num_programs(0), flatten=FLATTEN):
        start = pair // (GROUP * tiles) * GROUP
        height = min(row_tiles - start, GROUP)
        within = pair % (GROUP * tiles)
        row_tile = start + within % height
        tile = within // height
        score = tl.full([BLOCK_N, BLOCK_V], 0, tl.float32)
        for k in range(0, width, BLOCK_K):
            queries = _load_tile(query, row_tile * BLOCK_N, k, width, BLOCK_N, BLOCK_K, DESCRIPTOR)
            rows = _load_tile(table, tile * BLOCK_V, k, width, BLOCK_V, BLOCK_K, DESCRIPTOR)
            score = tl.dot(queries, tl.trans(rows), score)
        row = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(keys + row.to(tl.int64) * tiles + tile, two_best(score, BLOCK_V, PER_KEY, 1), mask=row < n)
