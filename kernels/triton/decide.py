"""The decision: of each row the tokens that may have won by the scan's error bound, compared exactly."""

from __future__ import annotations

import triton
import triton.language as tl

from pez_fast._triton.double import double_cosine
from pez_fast._triton.rows import load_rows, row_exponents
from pez_fast._triton.scan import NOTHING, first_score, second_score

END = tl.constexpr(1 << 62)  # in place of a tile where none is left


@triton.jit
def _best_score(keys, tiles, BLOCK_T: tl.constexpr):
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    for start in range(0, tiles, BLOCK_T):
        at = start + tl.arange(0, BLOCK_T)
        best = tl.maximum(best, first_score(tl.load(keys + at, mask=at < tiles, other=NOTHING)))
    return tl.max(best, 0)


@triton.jit
def _next_tile(keys, tiles, after, limit, PLACES: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first tile behind `after` whose best score reaches limit, END where there is none.

    In one number, so that nothing has to be loaded again: the tile in the high half, in bit 31 whether its second best score
    reaches limit too, below it the place of the best.
    """
    found = tl.full([], END, tl.int64)
    start = (after + 1) // BLOCK_T * BLOCK_T
    while (start < tiles) & (found == END):
        at = start + tl.arange(0, BLOCK_T)
        key = tl.load(keys + at, mask=at < tiles, other=NOTHING)
        several = (second_score(key) >= limit).to(tl.int64) << 31
        tile = (at.to(tl.int64) << 32) | several | (key & (PLACES - 1))
        found = tl.min(tl.where((first_score(key) >= limit) & (at > after), tile, END), 0)
        start += BLOCK_T
    return found


@triton.jit
def _reaching(query, unit, place, valid, limit, width, SIZE: tl.constexpr, BLOCK_W: tl.constexpr):
    """Which of the tokens at `place` (SIZE,) reach limit, by their scores computed anew from the fp16 rows, of `width` elements.

    Such a score is within the bound of a scanned one. Its products are exact in float32, and at least 8 lanes share a row, so
    that at most width / 8 + 8 additions follow one another: of unit vectors they lose less than (width / 8 + 8) 2^-24, where
    `scan_slack` allows 0.328 width 2^-23 and more: enough from a width of 16.
    """
    score = tl.full([SIZE], 0, tl.float32)
    rows = place.to(tl.int64) * width
    for start in range(0, width, BLOCK_W):
        columns = start + tl.arange(0, BLOCK_W)
        inside = columns < width
        q = tl.load(query + columns, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(unit + rows[:, None] + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        score += tl.sum(e.to(tl.float32) * q[None, :], 1)
    return valid & (score >= limit)


@triton.jit
def _cosines(row, table, place, valid, d, SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Cosines in float64 of a row with the tokens at `place` (SIZE,); 0 of a zero token, -inf if not valid.

    row: (1,) pointer, stride, norm; table: weight, its strides, ids, norms. A norm is of use where both are narrower than float64:
    else their elements have to be scaled, and it is found on the way.
    """
    x, x_stride, x_norm = row
    weight, stride_v, stride_d, ids, norm = table
    rows = weight + tl.load(ids + place, mask=valid, other=0) * stride_v
    always = tl.full([1], 1, tl.int1)
    dot = tl.full([SIZE, BLOCK_D], 0, tl.float64)
    if x.dtype.scalar.element_ty == tl.float64 or weight.dtype.element_ty == tl.float64:
        x_exponent = row_exponents(x, always, d, x_stride, 1, BLOCK_D)
        exponent = row_exponents(rows, valid, d, stride_d, SIZE, BLOCK_D)
        e_square = tl.full([SIZE, BLOCK_D], 0, tl.float64)
        q_square = tl.full([1, BLOCK_D], 0, tl.float64)
        for start in range(0, d, BLOCK_D):
            q = load_rows(x, always, start, d, x_stride, x_exponent, BLOCK_D)  # (1, BLOCK_D)
            e = load_rows(rows, valid, start, d, stride_d, exponent, BLOCK_D)  # (SIZE, BLOCK_D)
            dot += q * e
            e_square += e * e
            q_square += q * q
        scale = tl.sqrt(tl.sum(e_square, 1)) * tl.sqrt(tl.sum(q_square, 1))
    else:
        scale = tl.load(norm + place, mask=valid, other=0.0) * x_norm
        for start in range(0, d, BLOCK_D):
            q = load_rows(x, always, start, d, x_stride, 0, BLOCK_D)
            e = load_rows(rows, valid, start, d, stride_d, 0, BLOCK_D)
            dot += q * e
    cosine = tl.where(scale > 0, tl.sum(dot, 1) / tl.where(scale > 0, scale, 1.0), 0.0)
    return tl.where(valid, cosine, float("-inf"))


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _nearest_decide_kernel(
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
    tokens,
    tiles,
    d,
    width,
    stride_n,
    stride_d,
    stride_wv,
    stride_wd,
    slack,
    margin,
    tie,
    BLOCK_V: tl.constexpr,
    PER_KEY: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNK_W: tl.constexpr,
    CHUNK_D: tl.constexpr,
    TIES_D: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """The nearest token of one row of x (N, d) among weight[ids] (K, d), the lowest on ties, given the keys of the scan.

    norm (K,) float64, query and unit (…, width) fp16, keys (N, tiles) int64 of places that PER_KEY tokens share, error, x_norm
    and state (N,) as the query kernel wrote them, residual (1,) float32. A scanned score is within
    eps = residual + error (1 + residual) + slack of the cosine: what is more than 2 eps below the best scanned one has lost. Where
    a key stands for several tokens, or a tile has several keys that reach this limit, the tokens' own scores tell which of them
    do. One token left has won. Several are compared in float64, whose difference is wrong by less than `margin`, and those that
    it cannot tell apart in double-double, `tie` times the size of the summands being its error.

    Writes found (N,) int64, similarity (N,) float32, and over state: 1 where the scan decided, 2 where several were compared,
    3 where whole tiles were looked at again, 0 where the row has no direction.
    """
    PLACES: tl.constexpr = BLOCK_V // PER_KEY
    row = tl.program_id(0).to(tl.int64)
    keys += row * tiles
    query += row * width
    kind = tl.load(state + row)
    r = tl.load(residual)
    eps = r + tl.load(error + row) * (1 + r) + slack
    x_row = (x + row * stride_n + tl.arange(0, 1), stride_d, tl.load(x_norm + row))
    table = (weight, stride_wv, stride_wd, ids, norm)
    limit = _best_score(keys, tiles, BLOCK_T) - 2 * eps
    best = tl.full([], float("-inf"), tl.float64)
    runner_up = best
    single = tl.full([], 0, tl.int32)
    several = single
    winner = single
    zero = tl.full([], 0, tl.float64)
    tied = (best, zero, zero)  # hi, lo and size of the winner's cosine, where it was found in double-double
    doubled = kind < 0
    again = kind == 0
    while again:
        code = _next_tile(keys, tiles, -1, limit, PLACES, BLOCK_T)
        while code < END:
            tile = (code >> 32).to(tl.int32)
            first = tile * BLOCK_V
            whole = (code >> 31) & 1 != 0
            at = (code & (PLACES - 1)).to(tl.int32)
            if whole | doubled:
                first += tl.where(whole, 0, at)
                step = tl.where(whole, 1, PLACES)
                count = tl.where(whole, BLOCK_V, PER_KEY)
                for start in range(0, count, CHUNK):
                    lane = start + tl.arange(0, CHUNK)
                    place = first + lane * step
                    reach = _reaching(
                        query, unit, place, (lane < count) & (place < tokens), limit, width, CHUNK, CHUNK_W
                    )
                    if tl.max(reach.to(tl.int32), 0) > 0:
                        cosine = _cosines(x_row, table, place, reach, d, CHUNK, CHUNK_D)
                        if doubled:
                            near = cosine >= best - margin
                            if tl.max(near.to(tl.int32), 0) > 0:
                                winner, tied = _first_of_ties(
                                    x_row, table, place, near, winner, tied, tie, tokens, d, CHUNK, TIES_D, LEVELS
                                )
                        else:
                            winner, best, runner_up = _two_largest(cosine, place, winner, best, runner_up, tokens)
                several += 1
            else:
                place = first + at + PLACES * tl.arange(0, PER_KEY)
                reach = place < tokens
                if PER_KEY > 1:
                    reach = _reaching(query, unit, place, reach, limit, width, PER_KEY, BLOCK_W)
                only = tl.min(tl.where(reach, place, tokens), 0)
                while only < tokens:
                    one = only + tl.arange(0, 1)
                    cosine = _cosines(x_row, table, one, one == only, d, 1, BLOCK_D)
                    winner, best, runner_up = _two_largest(cosine, one, winner, best, runner_up, tokens)
                    single += 1
                    only = tl.min(tl.where(reach & (place > only), place, tokens), 0)
            code = _next_tile(keys, tiles, tile, limit, PLACES, BLOCK_T)
        if doubled == 0:
            tl.store(state + row, tl.where(several > 0, 3, tl.where(single > 1, 2, 1)))
        again = (doubled == 0) & (runner_up >= best - margin)
        doubled = again
    none = tl.where(kind == 1, 0.0, float("nan")).to(tl.float64)
    tl.store(similarity + row, tl.where(kind == 0, best, none).to(tl.float32))
    tl.store(found + row, tl.where(kind == 2, -1, tl.load(ids + winner)))
    tl.store(state + row, 0, mask=kind != 0)


@triton.jit
def _two_largest(cosine, place, winner, best, runner_up, tokens):
    """The winner and the two largest cosines so far, with those of the tokens at `place`, ascending, added."""
    top = tl.max(cosine, 0)
    at = tl.min(tl.where(cosine == top, place, tokens), 0)
    second = tl.max(tl.where(place == at, float("-inf"), cosine), 0)
    runner_up = tl.maximum(tl.maximum(runner_up, second), tl.minimum(best, top))
    return tl.where(top > best, at, winner), tl.maximum(best, top), runner_up


@triton.jit
def _first_of_ties(
    row,
    table,
    place,
    near,
    winner,
    tied,
    tie,
    tokens,
    d,
    SIZE: tl.constexpr,
    TIES_D: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """The winner so far and its cosine, or the lowest of the tokens at `place` that are larger by more than their errors."""
    x, x_stride, _ = row
    weight, stride_v, stride_d, ids, _ = table
    hi, lo, size = tied
    rows = weight + tl.load(ids + place, mask=near, other=0) * stride_v
    c_hi, c_lo, c_size = double_cosine(x, x_stride, rows, near, stride_d, d, SIZE, TIES_D, LEVELS)
    near_hi = tl.where(near, c_hi, float("-inf"))
    top_hi = tl.max(near_hi, 0)
    top_lo = tl.max(tl.where(near_hi == top_hi, c_lo, float("-inf")), 0)
    behind = (top_hi - c_hi) + (top_lo - c_lo)
    top_size = tl.max(tl.where(near & (behind == 0), c_size, 0.0), 0)
    if (top_hi - hi) + (top_lo - lo) > tie * (size + top_size):
        level = near & (behind <= tie * (c_size + top_size))
        winner = tl.min(tl.where(level, place, tokens), 0)
        chosen = place == winner
        hi = tl.sum(tl.where(chosen, c_hi, 0.0), 0)
        lo = tl.sum(tl.where(chosen, c_lo, 0.0), 0)
        size = tl.sum(tl.where(chosen, c_size, 0.0), 0)
    return winner, (hi, lo, size)
