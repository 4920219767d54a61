"""The decision: it compares exactly those tokens of a row that may have won by the scan's error bound."""

from __future__ import annotations

import triton
import triton.language as tl

from pez_fast._triton.double import double_cosine
from pez_fast._triton.rows import load_rows, row_exponents
from pez_fast._triton.scan import EMPTY_KEY, first_score, second_score

NO_TILE = tl.constexpr(1 << 62)  # what `_next_tile` returns where no tile is left


@triton.jit
def _best_score(keys, tiles, BLOCK_T: tl.constexpr):
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    for start in range(0, tiles, BLOCK_T):
        at = start + tl.arange(0, BLOCK_T)
        best = tl.maximum(best, first_score(tl.load(keys + at, mask=at < tiles, other=EMPTY_KEY)))
    return tl.max(best, 0)


@triton.jit
def _next_tile(keys, tiles, after, limit, GROUPS: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first tile behind `after` whose best score reaches limit; NO_TILE where there is none.

    The int64 holds three values (see `_unpacked`), so that the kernel loads no key twice: the tile in the high half, in
    bit 31 whether the tile's second best score reaches limit too, and in the lower bits the group of the best score.
    """
    found = tl.full([], NO_TILE, tl.int64)
    start = (after + 1) // BLOCK_T * BLOCK_T
    while (start < tiles) & (found == NO_TILE):
        at = start + tl.arange(0, BLOCK_T)
        key = tl.load(keys + at, mask=at < tiles, other=EMPTY_KEY)
        several = (second_score(key) >= limit).to(tl.int64) << 31
        tile = (at.to(tl.int64) << 32) | several | (key & (GROUPS - 1))
        found = tl.min(tl.where((first_score(key) >= limit) & (at > after), tile, NO_TILE), 0)
        start += BLOCK_T
    return found


@triton.jit
def _unpacked(code, GROUPS: tl.constexpr):
    """What `_next_tile` returned: tile int32, whether every group of it must be looked at, its best group int32."""
    return (code >> 32).to(tl.int32), (code >> 31) & 1 != 0, (code & (GROUPS - 1)).to(tl.int32)


@triton.jit
def _reaching(scanned, position, valid, SIZE: tl.constexpr, BLOCK_W: tl.constexpr):
    """Which of the tokens at `position` (SIZE,) reach limit, by scores computed again from the fp16 rows.

    scanned: query (width,) and unit (…, width) fp16 pointers, limit, width. Such a score is within the bound of a
    scanned one: its products are exact in float32, and at least 8 lanes share a row, so that at most width / 8 + 8
    additions follow one another. On unit vectors these lose less than (width / 8 + 8) 2^-24. `scan_slack` allows 0.328
    width 2^-23 and more, which is enough from a width of 16 on.
    """
    query, unit, limit, width = scanned
    score = tl.full([SIZE], 0, tl.float32)
    rows = position.to(tl.int64) * width
    for start in range(0, width, BLOCK_W):
        columns = start + tl.arange(0, BLOCK_W)
        inside = columns < width
        q = tl.load(query + columns, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(unit + rows[:, None] + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        score += tl.sum(e.to(tl.float32) * q[None, :], 1)
    return valid & (score >= limit)


@triton.jit
def _cosines(row, table, position, valid, d, SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Cosines in float64 of a row with the tokens at `position` (SIZE,); 0 for a zero token, -inf if not valid.

    row: (1,) pointer, stride, norm; table: weight, its strides, ids, norms. The norms are used where row and weight are
    narrower than float64. Otherwise the elements must be scaled, and the loop computes the norms too.
    """
    x, x_stride, x_norm = row
    weight, stride_v, stride_d, ids, norm = table
    rows = weight + tl.load(ids + position, mask=valid, other=0) * stride_v
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
        scale = tl.load(norm + position, mask=valid, other=0.0) * x_norm
        for start in range(0, d, BLOCK_D):
            q = load_rows(x, always, start, d, x_stride, 0, BLOCK_D)
            e = load_rows(rows, valid, start, d, stride_d, 0, BLOCK_D)
            dot += q * e
    cosine = tl.where(scale > 0, tl.sum(dot, 1) / tl.where(scale > 0, scale, 1.0), 0.0)
    return tl.where(valid, cosine, float("-inf"))


@triton.jit
def _two_largest(cosine, position, top, tokens):
    """top: the winner and the two largest cosines so far; the result adds the tokens at `position`, which ascend."""
    winner, best, runner_up = top
    largest = tl.max(cosine, 0)
    at = tl.min(tl.where(cosine == largest, position, tokens), 0)
    second = tl.max(tl.where(position == at, float("-inf"), cosine), 0)
    runner_up = tl.maximum(tl.maximum(runner_up, second), tl.minimum(best, largest))
    return tl.where(largest > best, at, winner), tl.maximum(best, largest), runner_up


@triton.jit
def _first_of_ties(row, table, position, near, winner, tied, tie_error, tokens, d,
                   SIZE: tl.constexpr, TIES_D: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """The winner so far and its cosine, unless a token at `position` is larger by more than the errors of both.

    Then it returns the lowest of the tokens that equal the largest one within their errors, and its cosine.
    """
    x, x_stride, _ = row
    weight, stride_v, stride_d, ids, _ = table
    hi, lo, size = tied
    rows = weight + tl.load(ids + position, mask=near, other=0) * stride_v
    c_hi, c_lo, c_size = double_cosine(x, x_stride, rows, near, stride_d, d, SIZE, TIES_D, LEVELS)
    near_hi = tl.where(near, c_hi, float("-inf"))
    top_hi = tl.max(near_hi, 0)
    top_lo = tl.max(tl.where(near_hi == top_hi, c_lo, float("-inf")), 0)
    behind = (top_hi - c_hi) + (top_lo - c_lo)
    top_size = tl.max(tl.where(near & (behind == 0), c_size, 0.0), 0)
    if (top_hi - hi) + (top_lo - lo) > tie_error * (size + top_size):
        level = near & (behind <= tie_error * (c_size + top_size))
        winner = tl.min(tl.where(level, position, tokens), 0)
        chosen = position == winner
        hi = tl.sum(tl.where(chosen, c_hi, 0.0), 0)
        lo = tl.sum(tl.where(chosen, c_lo, 0.0), 0)
        size = tl.sum(tl.where(chosen, c_size, 0.0), 0)
    return winner, (hi, lo, size)


@triton.jit
def _compare_group(row, table, scanned, position, top, tokens, d,
                   SIZE: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Compare the tokens of one group, at `position` (SIZE,), that reach limit, one at a time, in float64.

    Returns top and the number of tokens compared. A group of one token has already reached limit.
    """
    compared = tl.full([], 0, tl.int32)
    reach = position < tokens
    if SIZE > 1:
        reach = _reaching(scanned, position, reach, SIZE, BLOCK_W)
    only = tl.min(tl.where(reach, position, tokens), 0)
    while only < tokens:
        one = only + tl.arange(0, 1)
        top = _two_largest(_cosines(row, table, one, one == only, d, 1, BLOCK_D), one, top, tokens)
        compared += 1
        only = tl.min(tl.where(reach & (position > only), position, tokens), 0)
    return top, compared


@triton.jit
def _compare_chunks(row, table, scanned, span, top, tied, margin, tie_error, doubled, tokens, d,
                    CHUNK: tl.constexpr, CHUNK_W: tl.constexpr, CHUNK_D: tl.constexpr,
                    TIES_D: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """Compare the tokens of a tile or of a group, CHUNK at a time: in float64, or in double-double where `doubled`.

    span: position of the first token, step to the next one, number of tokens. Returns top and tied.
    """
    first, step, count = span
    for start in range(0, count, CHUNK):
        lane = start + tl.arange(0, CHUNK)
        position = first + lane * step
        reach = _reaching(scanned, position, (lane < count) & (position < tokens), CHUNK, CHUNK_W)
        if tl.max(reach.to(tl.int32), 0) > 0:
            cosine = _cosines(row, table, position, reach, d, CHUNK, CHUNK_D)
            if doubled:
                winner, best, runner_up = top
                near = cosine >= best - margin
                if tl.max(near.to(tl.int32), 0) > 0:
                    winner, tied = _first_of_ties(
                        row, table, position, near, winner, tied, tie_error, tokens, d, CHUNK, TIES_D, LEVELS
                    )
                top = (winner, best, runner_up)
            else:
                top = _two_largest(cosine, position, top, tokens)
    return top, tied


@triton.jit
def _decide_row(row, table, scanned, keys, state, kind, tokens, tiles, d, margin, tie_error,
                BLOCK_V: tl.constexpr, GROUP_SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
                BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, CHUNK_W: tl.constexpr, CHUNK_D: tl.constexpr,
                TIES_D: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """The winner of a row and its cosine in float64, given its keys (tiles,); writes the state if kind is 0.

    The first pass compares in float64. If the two largest cosines are within `margin`, a second pass (`doubled`)
    compares the tokens that are so close in double-double. One loop serves both passes, so that the code exists once.
    """
    GROUPS: tl.constexpr = BLOCK_V // GROUP_SIZE
    minus_infinity = tl.full([], float("-inf"), tl.float64)
    zero = tl.full([], 0, tl.float64)
    single = tl.full([], 0, tl.int32)  # tokens compared in tiles of which one group was looked at
    several = single  # tiles of which all groups were looked at
    top = (single, minus_infinity, minus_infinity)  # winner, its cosine, the second largest cosine
    tied = (minus_infinity, zero, zero)  # hi, lo and size of the winner's cosine in double-double
    doubled = kind < 0
    again = kind == 0
    while again:
        code = _next_tile(keys, tiles, -1, scanned[2], GROUPS, BLOCK_T)
        while code < NO_TILE:
            tile, whole, group = _unpacked(code, GROUPS)
            first = tile * BLOCK_V
            if whole | doubled:
                first += tl.where(whole, 0, group)
                span = (first, tl.where(whole, 1, GROUPS), tl.where(whole, BLOCK_V, GROUP_SIZE))
                top, tied = _compare_chunks(row, table, scanned, span, top, tied, margin, tie_error, doubled, tokens, d,
                                            CHUNK, CHUNK_W, CHUNK_D, TIES_D, LEVELS)  # fmt: skip
                several += 1
            else:
                position = first + group + GROUPS * tl.arange(0, GROUP_SIZE)
                top, compared = _compare_group(
                    row, table, scanned, position, top, tokens, d, GROUP_SIZE, BLOCK_W, BLOCK_D
                )
                single += compared
            code = _next_tile(keys, tiles, tile, scanned[2], GROUPS, BLOCK_T)
        if doubled == 0:
            tl.store(state, tl.where(several > 0, 3, tl.where(single > 1, 2, 1)))
        again = (doubled == 0) & (top[2] >= top[1] - margin)
        doubled = again
    return top[0], top[1]


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _nearest_decide_kernel(
    x, weight, ids, norm, query, unit, keys, error, x_norm, kinds, residual, found, similarity, state,
    tokens, tiles, d, width, stride_n, stride_d, stride_wv, stride_wd, slack, margin, tie_error,
    BLOCK_V: tl.constexpr, GROUP_SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, CHUNK_W: tl.constexpr, CHUNK_D: tl.constexpr,
    TIES_D: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """The nearest token of one row of x (N, d) among weight[ids] (K, d), the lowest on ties, from the scan's keys.

    norm (K,) float64; query and unit (…, width) fp16; keys (N, tiles) int64 of groups of GROUP_SIZE tokens; error,
    x_norm and kinds (N,) as the query kernel wrote them; residual (1,) float32. A scanned score is within
    eps = residual + error (1 + residual) + slack of the cosine, so a score more than 2 eps below the best one has lost.
    Where a group has several tokens, or several groups of a tile reach this limit, scores computed again tell which
    tokens do. If one token is left, it has won. Several are compared in float64, where a difference is wrong by less
    than `margin`. Those that float64 cannot tell apart are compared in double-double, whose error is `tie_error` times
    the size of the summands.

    Writes found (N,) int64, similarity (N,) float32, and state (N,) int32: 1 where the scan decided, 2 where several
    tokens were compared, 3 where whole tiles were looked at again, 0 where the row has no direction. Nothing that is
    read is written over: the warps of a program do not wait for one another between the two.
    """
    row = tl.program_id(0).to(tl.int64)
    keys += row * tiles
    kind = tl.load(kinds + row)
    r = tl.load(residual)
    eps = r + tl.load(error + row) * (1 + r) + slack
    x_row = (x + row * stride_n + tl.arange(0, 1), stride_d, tl.load(x_norm + row))
    table = (weight, stride_wv, stride_wd, ids, norm)
    scanned = (query + row * width, unit, _best_score(keys, tiles, BLOCK_T) - 2 * eps, width)
    winner, best = _decide_row(x_row, table, scanned, keys, state + row, kind, tokens, tiles, d, margin, tie_error,
                               BLOCK_V, GROUP_SIZE, BLOCK_T, BLOCK_W, BLOCK_D, CHUNK, CHUNK_W, CHUNK_D,
                               TIES_D, LEVELS)  # fmt: skip
    none = tl.where(kind == 1, 0.0, float("nan")).to(tl.float64)
    tl.store(similarity + row, tl.where(kind == 0, best, none).to(tl.float32))
    tl.store(found + row, tl.where(kind == 2, -1, tl.load(ids + winner)))
    tl.store(state + row, 0, mask=kind != 0)
