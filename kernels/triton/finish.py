"""The decision: of each row the tokens that may have won by the scan's error bound, compared exactly."""

from __future__ import annotations

import triton
import triton.language as tl

from pez_fast._triton.double import double_cosine
from pez_fast._triton.rows import load_rows, row_exponents
from pez_fast._triton.scan import LOWEST, key_score, score_key


@triton.jit
def _best_key(keys, tiles, BLOCK_T: tl.constexpr):
    best = tl.full([BLOCK_T], LOWEST, tl.int32)
    for start in range(0, tiles, BLOCK_T):
        at = start + tl.arange(0, BLOCK_T)
        best = tl.maximum(best, tl.load(keys + 2 * at, mask=at < tiles, other=LOWEST))
    return tl.max(best, 0)


@triton.jit
def _next_tile(keys, tiles, after, limit, BLOCK_T: tl.constexpr):
    """The first tile behind `after` whose best key reaches limit; `tiles` where there is none."""
    found = tiles
    start = (after + 1) // BLOCK_T * BLOCK_T
    while (start < tiles) & (found == tiles):
        at = start + tl.arange(0, BLOCK_T)
        key = tl.load(keys + 2 * at, mask=at < tiles, other=LOWEST)
        found = tl.min(tl.where((key >= limit) & (at > after), at, tiles), 0)
        start += BLOCK_T
    return found


@triton.jit
def _cosines(x, x_stride, weight, stride_v, stride_d, ids, position, valid, d, SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Cosines in float64 of the row x, a (1,) pointer, with the tokens at `position` (SIZE,); 0 of a zero token, -inf if not valid."""
    rows = weight + tl.load(ids + position, mask=valid, other=0) * stride_v
    always = tl.full([1], 1, tl.int1)
    x_exponent = row_exponents(x, always, d, x_stride, 1, BLOCK_D) if x.dtype.scalar.element_ty == tl.float64 else 0
    exponent = row_exponents(rows, valid, d, stride_d, SIZE, BLOCK_D) if weight.dtype.element_ty == tl.float64 else 0
    dot = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    e_square = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    q_square = tl.full([1, BLOCK_D], 0, tl.float64)
    for start in range(0, d, BLOCK_D):
        q = load_rows(x, always, start, d, x_stride, x_exponent, BLOCK_D)  # (1, BLOCK_D)
        e = load_rows(rows, valid, start, d, stride_d, exponent, BLOCK_D)  # (SIZE, BLOCK_D)
        dot += q * e
        e_square += e * e
        q_square += q * q
    scale = tl.sqrt(tl.sum(e_square, 1)) * tl.sqrt(tl.sum(q_square, 1))
    cosine = tl.where(scale > 0, tl.sum(dot, 1) / tl.where(scale > 0, scale, 1.0), 0.0)
    return tl.where(valid, cosine, float("-inf"))


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _nearest_finish_kernel(
    x, weight, ids, keys, error, state, residual, found, similarity,
    tokens, tiles, d, stride_n, stride_d, stride_wv, stride_wd, slack, margin, tie,
    BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, CHUNK_D: tl.constexpr, CHUNK_LEVELS: tl.constexpr,
):  # fmt: skip
    """The nearest token of one row of x (N, d) among weight[ids] (K, d), the lowest on ties, given the keys of the scan.

    keys (N, tiles, 2) int32, error and state (N,) as the query kernel wrote them, residual (1,) float32. A scanned score is
    within eps = residual + error (1 + residual) + slack of the cosine: what is more than 2 eps below the best scanned one
    has lost. One token left has won. Several are compared in float64, whose difference is wrong by less than `margin`, and
    those that it cannot tell apart in double-double, `tie` times the size of the summands being its error.

    Writes found (N,) int64, similarity (N,) float32, and over state: 1 where the scan decided, 2 where several were compared,
    3 where whole tiles were, 0 where the row has no direction.
    """
    row = tl.program_id(0).to(tl.int64)
    kind = tl.load(state + row)
    one = tl.arange(0, 1)
    lane = tl.arange(0, CHUNK)
    x_row = x + row * stride_n + one  # (1,)
    keys += row * tiles * 2
    best = tl.full([], float("-inf"), tl.float64)
    runner_up = best
    winner = tl.full([], 0, tl.int32)
    single = winner
    several = winner
    if kind == 0:
        r = tl.load(residual)
        eps = r + tl.load(error + row) * (1 + r) + slack
        limit = score_key(key_score(_best_key(keys, tiles, BLOCK_T)) - 2 * eps)
        tile = _next_tile(keys, tiles, -1, limit, BLOCK_T)
        while tile < tiles:
            first = tile * BLOCK_V
            if tl.load(keys + 2 * tile + 1) < limit:
                place = first + BLOCK_V - 1 - (tl.load(keys + 2 * tile) & (BLOCK_V - 1))
                only = _cosines(x_row, stride_d, weight, stride_wv, stride_wd, ids, place + one, one == 0, d, 1, BLOCK_D)
                cosine = tl.max(only, 0)
                runner_up = tl.maximum(runner_up, tl.minimum(best, cosine))
                winner = tl.where(cosine > best, place, winner)
                best = tl.maximum(best, cosine)
                single += 1
            else:
                for start in range(first, min(first + BLOCK_V, tokens), CHUNK):
                    place = start + lane
                    cosine = _cosines(x_row, stride_d, weight, stride_wv, stride_wd, ids, place, place < tokens, d, CHUNK, CHUNK_D)
                    top = tl.max(cosine, 0)
                    at = tl.min(tl.where(cosine == top, place, tokens), 0)
                    second = tl.max(tl.where(place == at, float("-inf"), cosine), 0)
                    runner_up = tl.maximum(tl.maximum(runner_up, second), tl.minimum(best, top))
                    winner = tl.where(top > best, at, winner)
                    best = tl.maximum(best, top)
                several += 1
            tile = _next_tile(keys, tiles, tile, limit, BLOCK_T)
        if runner_up >= best - margin:
            winner = _settle(
                x_row, stride_d, weight, stride_wv, stride_wd, ids, keys, limit, best - margin, tie,
                tokens, tiles, d, BLOCK_V, BLOCK_T, CHUNK, CHUNK_D, CHUNK_LEVELS,
            )  # fmt: skip
    none = tl.where(kind == 1, 0.0, float("nan")).to(tl.float64)
    tl.store(similarity + row, tl.where(kind == 0, best, none).to(tl.float32))
    tl.store(found + row, tl.where(kind == 2, -1, tl.load(ids + winner)))
    tl.store(state + row, tl.where(kind == 0, tl.where(several > 0, 3, tl.where(single > 1, 2, 1)), 0))


@triton.jit
def _settle(
    x_row, stride_d, weight, stride_wv, stride_wd, ids, keys, limit, enough, tie,
    tokens, tiles, d,
    BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, CHUNK_D: tl.constexpr, CHUNK_LEVELS: tl.constexpr,
):  # fmt: skip
    """The winner among the candidates whose float64 cosine is at least `enough`, in double-double, the lowest on ties."""
    lane = tl.arange(0, CHUNK)
    hi = tl.full([], float("-inf"), tl.float64)
    lo = tl.full([], 0.0, tl.float64)
    scale = lo
    winner = tl.full([], 0, tl.int32)
    tile = _next_tile(keys, tiles, -1, limit, BLOCK_T)
    while tile < tiles:
        first = tile * BLOCK_V
        last = min(first + BLOCK_V, tokens)
        if tl.load(keys + 2 * tile + 1) < limit:
            first += BLOCK_V - 1 - (tl.load(keys + 2 * tile) & (BLOCK_V - 1))
            last = first + 1
        for start in range(first, last, CHUNK):
            place = start + lane
            valid = place < last
            cosine = _cosines(x_row, stride_d, weight, stride_wv, stride_wd, ids, place, valid, d, CHUNK, CHUNK_D)
            near = cosine >= enough
            if tl.max(near.to(tl.int32), 0) > 0:
                rows = weight + tl.load(ids + place, mask=valid, other=0) * stride_wv
                c_hi, c_lo, c_scale = double_cosine(x_row, stride_d, rows, near, stride_wd, d, CHUNK, CHUNK_D, CHUNK_LEVELS)
                near_hi = tl.where(near, c_hi, float("-inf"))
                top_hi = tl.max(near_hi, 0)
                top_lo = tl.max(tl.where(near_hi == top_hi, c_lo, float("-inf")), 0)
                behind = (top_hi - c_hi) + (top_lo - c_lo)
                top_scale = tl.max(tl.where(near & (behind == 0), c_scale, 0.0), 0)
                if (top_hi - hi) + (top_lo - lo) > tie * (scale + top_scale):  # beyond the error of both
                    level = near & (behind <= tie * (c_scale + top_scale))
                    winner = tl.min(tl.where(level, place, tokens), 0)
                    chosen = place == winner
                    hi = tl.sum(tl.where(chosen, c_hi, 0.0), 0)
                    lo = tl.sum(tl.where(chosen, c_lo, 0.0), 0)
                    scale = tl.sum(tl.where(chosen, c_scale, 0.0), 0)
        tile = _next_tile(keys, tiles, tile, limit, BLOCK_T)
    return winner
