"""Nearest token in torch: float32 scan over blocks of the vocabulary, near ties settled exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without float32's mistakes.

The scan compares unit rows. Both unit vectors are rounded to float32 (2^-24 relative each) and the sum of d products
adds at most d 2^-24, in whatever order, so a scanned cosine is within `scan_error(d)` of the true one. A token whose
scanned cosine is more than twice that below the best scanned one cannot win; if one token is left it has won, and
several are compared in float64, then (where that cannot tell either) in double-double, then exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pez_fast._torch import exact
from pez_fast._torch.linear import linear

ROWS = 1024  # queries scanned at once
TOKENS = 4096  # tokens scanned at once: the scores of a block are at most ROWS x TOKENS
CANDIDATES = 1 << 21  # candidates kept before they are settled
ELEMENTS = 1 << 22  # float64 elements gathered at once when candidates are settled
DIRECTIONS = 8  # different directions among equal candidates that are looked for before whole numbers decide


def scan_error(d: int) -> float:
    """Bound on |scanned - true| cosine for rows of d elements."""
    return (d + 8) * 2.0**-24


def float64_error(d: int) -> float:
    """Bound on the rounding of a cosine computed in float64, in whatever order."""
    return (d + 8) * 2.0**-52


def nearest(x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor]) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, prepared [unit (K, d) float32] -> ids (N,), cosine (N,)."""
    (unit,) = prepared
    found = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    similarity = torch.full((len(x),), torch.nan, dtype=torch.float32, device=x.device)
    with torch.autocast(x.device.type, enabled=False), _full_precision():
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            _nearest_rows(x[part], weight, ids, unit, found[part], similarity[part])
    return found, similarity


def _nearest_rows(x: Tensor, weight: Tensor, ids: Tensor, unit: Tensor, found: Tensor, similarity: Tensor) -> None:
    finite = x.isfinite().all(-1)
    directed = (finite & (x != 0).any(-1)).nonzero()[:, 0]
    winner = torch.where(finite, ids[0], -1)  # a zero row has cosine 0 with every token
    cosine = torch.where(finite, 0, torch.nan).double()
    if len(directed):
        x = x[directed]
        rows, kept = _scan(x, unit, weight, ids)
        nearest_ids = _settle(x, weight, rows, ids[kept])
        winner[directed], cosine[directed] = nearest_ids, _float64_cosine(x, weight[nearest_ids])
    found.copy_(winner)
    similarity.copy_(cosine)


def _scan(x: Tensor, unit: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates as (row, position in ids), every row with at least one, the true winner among them."""
    q = power_scaled(x)
    q = (q / q.norm(dim=-1, keepdim=True)).float()
    margin = 2 * scan_error(q.shape[1])
    best = q.new_full((len(q),), -torch.inf)
    rows, kept, scores = (torch.empty(0, dtype=t, device=q.device) for t in (torch.int64, torch.int64, torch.float32))
    for start in range(0, len(unit), TOKENS):
        block = linear(q, unit[start : start + TOKENS])
        top = block.amax(1)
        best = torch.maximum(best, top)
        hit = (top >= best - margin).nonzero()[:, 0]
        if len(hit) == 0:
            continue
        near = block[hit]
        at, token = (near >= (best[hit] - margin)[:, None]).nonzero(as_tuple=True)
        rows, kept = torch.cat([rows, hit[at]]), torch.cat([kept, start + token])
        scores = torch.cat([scores, near[at, token]])
        alive = scores >= best[rows] - margin
        rows, kept, scores = rows[alive], kept[alive], scores[alive]
        if len(rows) > CANDIDATES:  # many near ties: one winner a row stands for those met so far
            winner = torch.searchsorted(ids, _settle(x, weight, rows, ids[kept]))
            present = torch.zeros(len(q), dtype=torch.bool, device=q.device).index_fill_(0, rows, True)
            rows, kept = present.nonzero()[:, 0], winner[present]
            scores = best[rows]
    return rows, kept


def _settle(x: Tensor, weight: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """The winner among each row's candidates, (N,) ids; rows without a candidate get 0."""
    n, d = x.shape
    winner = torch.zeros(n, dtype=torch.int64, device=x.device)
    rows, tokens = _without_single(winner, rows, tokens)
    if len(rows) == 0:
        return winner
    cosine = torch.cat([_float64_cosine(x[r], weight[t]) for r, t in _chunks(rows, tokens, d)])
    best = torch.full((n,), -torch.inf, dtype=torch.float64, device=x.device).scatter_reduce_(0, rows, cosine, "amax")
    near = cosine >= best[rows] - 2 * float64_error(d)
    rows, tokens = rows[near], tokens[near]
    rows, tokens = _without_single(winner, rows, tokens)
    if len(rows) == 0:
        return winner
    parts = [exact.cosine(power_scaled(x[r]), power_scaled(weight[t])) for r, t in _chunks(rows, tokens, 8 * d)]
    hi, lo = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    # Sorted by (hi, lo) within each row, the last is the best; those that may equal it are within the error of it.
    order = torch.arange(len(rows), device=x.device)
    for key in (lo, hi, rows):
        order = order[key[order].argsort(stable=True)]
    last = torch.zeros(n, dtype=torch.int64, device=x.device).scatter_reduce_(
        0, rows[order], torch.arange(len(rows), device=x.device), "amax"
    )
    top = order[last[rows]]
    near = (hi - hi[top]) + (lo - lo[top]) >= -2 * exact.ERROR
    return _settle_exactly(x, weight, rows[near], tokens[near], winner)


def _settle_exactly(x: Tensor, weight: Tensor, rows: Tensor, tokens: Tensor, winner: Tensor) -> Tensor:
    """Write the winner among candidates that double-double cannot tell apart; of parallel rows the lowest id stands for all."""
    kept: list[tuple[Tensor, Tensor]] = []
    if torch.float64 not in (x.dtype, weight.dtype):
        for _ in range(DIRECTIONS):
            lowest = torch.full_like(winner, len(weight)).scatter_reduce_(0, rows, tokens, "amin")
            first = tokens == lowest[rows]
            kept.append((rows[first], tokens[first]))
            same = [exact.parallel(weight[t], weight[lowest[r]]) for r, t in _chunks(rows, tokens, x.shape[1])]
            other = ~torch.cat(same)
            rows, tokens = rows[other], tokens[other]
            if len(rows) == 0:
                break
    kept.append((rows, tokens))
    rows, tokens = torch.cat([r for r, _ in kept]), torch.cat([t for _, t in kept])
    rows, tokens = _without_single(winner, rows, tokens)
    for row in rows.unique().tolist():
        candidates = tokens[rows == row].sort().values
        winner[row] = candidates[exact.first_largest(x[row], weight[candidates])]
    return winner


def _without_single(winner: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Write the winner of each row that has one candidate; the candidates of the other rows."""
    alone = torch.bincount(rows, minlength=len(winner))[rows] == 1
    winner[rows[alone]] = tokens[alone]
    return rows[~alone], tokens[~alone]


def _float64_cosine(x: Tensor, e: Tensor) -> Tensor:
    """Cosines of the rows of x, none of them zero, with those of e; 0 where e is zero."""
    q, e = power_scaled(x), power_scaled(e)
    scale = e.norm(dim=-1) * q.norm(dim=-1)
    return torch.where(scale > 0, (q * e).sum(-1) / torch.where(scale > 0, scale, 1), 0)


def _chunks(rows: Tensor, tokens: Tensor, d: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, ELEMENTS // d)
    for start in range(0, len(rows), size):
        yield rows[start : start + size], tokens[start : start + size]


def power_scaled(x: Tensor) -> Tensor:
    """x in float64, its squares and their products within range: float64 rows are scaled by a power of two, exactly.

    The values of the narrower dtypes are already in range: their squares lie from 1e-90 to 1e77.
    """
    if x.dtype != torch.float64:
        return x.double()
    exponent = x.abs().amax(-1, keepdim=True).frexp().exponent
    half = exponent // 2  # in two steps: 2^1074 itself is not a float64
    return x.ldexp(-half).ldexp(half - exponent)


@contextmanager
def _full_precision() -> Iterator[None]:
    """The bound holds for float32 products, so not for TF32 or bfloat16 ones, which torch can be told to use instead."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [b.fp32_precision for b in backends]
    try:
        for b in backends:
            b.fp32_precision = "ieee"
        yield
    finally:
        for b, p in zip(backends, before, strict=True):
            b.fp32_precision = p
