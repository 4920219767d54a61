"""Exact decision of near ties: which of several candidates has the largest cosine, with the lowest id on ties.

Every implementation scans in its own way and passes the candidates that its scan could not tell apart to
`resolve_ties`. If a row has more candidates than fit into its buffer, it passes the whole row to `exhaustive`.

Some devices have no float64 (Apple's MPS). There the scan runs on the device, and the CPU decides in float64, on copies
of the rows and of their candidates. On other devices nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from pez_fast._shared import arithmetic

ROWS = 256  # queries searched exhaustively at once
TOKENS = 4096  # tokens whose scores are computed at once
CANDIDATES = 1 << 21  # candidates kept before ties among them are resolved
ELEMENTS = 1 << 22  # float64 elements gathered at once when ties are resolved
DIRECTIONS = 8  # directions among equal candidates that are told apart before exact integers decide


def float64_device(device: torch.device) -> torch.device:
    """The device for float64 arithmetic on tensors of `device`: itself, or the CPU if it has no float64."""
    return device if _has_float64(device.type) else torch.device("cpu")


@cache
def _has_float64(kind: str) -> bool:
    try:  # MPS refuses to make such a tensor; some XPUs refuse to compute with it
        torch.ones(2, dtype=torch.float64, device=kind).sum()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):
        return False
    return True


def to_float64_device(x: Tensor) -> Tensor:
    """x, of any dtype, on its `float64_device`: x itself if its device has float64."""
    wide = float64_device(x.device)
    return x if wide == x.device else x.to(wide)


def gather_rows(weight: Tensor, ids: Tensor) -> Tensor:
    """weight (V, d), ids (C,) on any device -> rows (C, d) of weight on its float64 device; only they move."""
    return to_float64_device(weight[ids.to(weight.device)])


def float64_error(d: int) -> float:
    """The bound on the rounding of a cosine computed in float64, in whatever order."""
    return (d + 8) * 2.0**-52


def exhaustive(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """x (N, d), no row zero, ids (K,) allowed rows -> the nearest ids (N,), from float64 scores of all tokens."""
    home = x.device
    x, weight, ids = to_float64_device(x), to_float64_device(weight), to_float64_device(ids)
    found = [torch.empty(0, dtype=torch.int64, device=x.device)]
    for part in x.split(ROWS):
        q = unit_rows(part)

        def score(start: int, stop: int, q: Tensor = q) -> Tensor:
            return q @ unit_rows(weight[ids[start:stop]]).T

        rows, kept = candidates(part, weight, ids, score, float64_error(x.shape[1]))
        found.append(resolve_ties(part, weight, rows, ids[kept]))
    return torch.cat(found).to(home)


def candidates(
    x: Tensor, weight: Tensor, ids: Tensor, score: Callable[[int, int], Tensor], error: float
) -> tuple[Tensor, Tensor]:
    """Every token of `ids` (K,) that may be the nearest of a row of x (N, d), as (row, position in ids).

    `score(start, stop)` returns the cosines (N, stop - start) with the tokens at these positions, each within `error`
    of the true one. A token more than 2 `error` below the best cannot win. The scores and the result are on the device
    of `ids`; x is on the float64 device.
    """
    n, margin = len(x), 2 * error
    rows, kept = (torch.empty(0, dtype=torch.int64, device=ids.device) for _ in range(2))
    best = scores = torch.empty(0, device=ids.device)
    for start in range(0, len(ids), TOKENS):
        block = score(start, start + TOKENS)
        top = block.amax(1)
        if start == 0:
            best, scores = top.new_full((n,), -torch.inf), top.new_empty(0)
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
        if len(rows) > CANDIDATES:  # many near ties: one winner of each row replaces the candidates met so far
            winner = torch.searchsorted(to_float64_device(ids), resolve_ties(x, weight, rows, ids[kept]))
            present = torch.zeros(n, dtype=torch.bool, device=winner.device).index_fill_(
                0, to_float64_device(rows), True
            )
            rows, kept = (t.to(ids.device) for t in (present.nonzero()[:, 0], winner[present]))
            scores = best[rows]
    return rows, kept


def resolve_ties(x: Tensor, weight: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """The winner (N,) among each row's candidates, as ids; 0 for a row without a candidate.

    x (N, d) and the result are on the float64 device; candidate c is the token tokens[c] for row rows[c].
    """
    n, d = x.shape
    winner = torch.zeros(n, dtype=torch.int64, device=x.device)
    rows, tokens = _without_single(winner, to_float64_device(rows), to_float64_device(tokens))
    if len(rows) == 0:
        return winner
    cosine = torch.cat([float64_cosine(x[r], gather_rows(weight, t)) for r, t in _chunks(rows, tokens, d)])
    best = torch.full((n,), -torch.inf, dtype=torch.float64, device=x.device).scatter_reduce_(0, rows, cosine, "amax")
    near = cosine >= best[rows] - 2 * float64_error(d)
    rows, tokens = rows[near], tokens[near]
    rows, tokens = _without_single(winner, rows, tokens)
    if len(rows) == 0:
        return winner
    parts = [
        arithmetic.cosine(power_scaled(x[r]), power_scaled(gather_rows(weight, t)))
        for r, t in _chunks(rows, tokens, 8 * d)
    ]
    hi, lo = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    # Sorted by (hi, lo) within each row, the last candidate is the best; candidates within its error may equal it.
    order = torch.arange(len(rows), device=x.device)
    for key in (lo, hi, rows):
        order = order[key[order].argsort(stable=True)]
    last = torch.zeros(n, dtype=torch.int64, device=x.device).scatter_reduce_(
        0, rows[order], torch.arange(len(rows), device=x.device), "amax"
    )
    top = order[last[rows]]
    near = (hi - hi[top]) + (lo - lo[top]) >= -2 * arithmetic.error(d)
    return _resolve_exactly(x, weight, rows[near], tokens[near], winner)


def _resolve_exactly(x: Tensor, weight: Tensor, rows: Tensor, tokens: Tensor, winner: Tensor) -> Tensor:
    """Write the winner among candidates that double-double cannot tell apart; of parallel rows only the lowest id."""
    kept: list[tuple[Tensor, Tensor]] = []
    if torch.float64 not in (x.dtype, weight.dtype):
        for _ in range(DIRECTIONS):
            lowest = torch.full_like(winner, len(weight)).scatter_reduce_(0, rows, tokens, "amin")
            first = tokens == lowest[rows]
            kept.append((rows[first], tokens[first]))
            same = [
                arithmetic.parallel(gather_rows(weight, t), gather_rows(weight, lowest[r]))
                for r, t in _chunks(rows, tokens, x.shape[1])
            ]
            other = ~torch.cat(same)
            rows, tokens = rows[other], tokens[other]
            if len(rows) == 0:
                break
    kept.append((rows, tokens))
    rows, tokens = torch.cat([r for r, _ in kept]), torch.cat([t for _, t in kept])
    rows, tokens = _without_single(winner, rows, tokens)
    for row in rows.unique().tolist():
        candidates = tokens[rows == row].sort().values
        winner[row] = candidates[arithmetic.first_largest(x[row], gather_rows(weight, candidates))]
    return winner


def _without_single(winner: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Write the winner of each row that has one candidate; return the candidates of the other rows."""
    alone = torch.bincount(rows, minlength=len(winner))[rows] == 1
    winner[rows[alone]] = tokens[alone]
    return rows[~alone], tokens[~alone]


def float64_cosine(x: Tensor, e: Tensor) -> Tensor:
    """Float64 cosines (C,) of the rows of x, none zero, with those of e, on the float64 device; 0 where e is zero."""
    q, e = power_scaled(x), power_scaled(e)
    scale = e.norm(dim=-1) * q.norm(dim=-1)
    return torch.where(scale > 0, (q * e).sum(-1) / torch.where(scale > 0, scale, 1), 0)


def _chunks(rows: Tensor, tokens: Tensor, d: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, ELEMENTS // d)
    for start in range(0, len(rows), size):
        yield rows[start : start + size], tokens[start : start + size]


def power_scaled(x: Tensor) -> Tensor:
    """x in float64 on its float64 device, with squares and their products in range.

    Float64 rows are scaled by a power of two, exactly. The values of the narrower dtypes are in range as they are:
    their squares lie from 1e-90 to 1e77.
    """
    if x.dtype != torch.float64:
        return to_float64_device(x).double()
    exponent = x.abs().amax(-1, keepdim=True).frexp().exponent
    half = exponent // 2  # in two steps: 2^1074 itself is not a float64
    return x.ldexp(-half).ldexp(half - exponent)


def unit_rows(x: Tensor) -> Tensor:
    """The rows of x in float64, on its float64 device, divided by their norm; a zero row stays zero."""
    rows = power_scaled(x)
    norm = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1)
