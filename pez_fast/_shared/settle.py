"""Near ties settled: which of several candidates has the largest cosine, the lowest id on ties, without any error.

Every implementation scans in its own way and hands the candidates that its scan could not tell apart to `settle`; where there
are more of them than it has room for, it hands over the whole row to `exhaustive`.

Some devices have no float64 (Apple's MPS). There the scan runs on the device, and the CPU decides in float64: it gets copies of the
rows and of their candidates. Elsewhere nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from pez_fast._shared import arithmetic

ROWS = 256  # queries searched exhaustively at once
TOKENS = 4096  # tokens whose scores are looked at at once
CANDIDATES = 1 << 21  # candidates kept before they are settled
ELEMENTS = 1 << 22  # float64 elements gathered at once when candidates are settled
DIRECTIONS = 8  # different directions among equal candidates that are looked for before whole numbers decide


def wide_device(device: torch.device) -> torch.device:
    """Where to compute in float64 what lies on `device`: there, or on the CPU if the device has no float64."""
    return device if _has_float64(device.type) else torch.device("cpu")


@cache
def _has_float64(kind: str) -> bool:
    try:  # MPS refuses to make such a tensor, some XPUs to compute with it
        torch.ones(2, dtype=torch.float64, device=kind).sum()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):
        return False
    return True


def widely(x: Tensor) -> Tensor:
    """x, of any dtype, on the `wide_device` of its own: x itself on every device that has float64."""
    wide = wide_device(x.device)
    return x if wide == x.device else x.to(wide)


def gathered(weight: Tensor, ids: Tensor) -> Tensor:
    """weight (V, d), ids (C,) on any device -> rows (C, d) of the same dtype, on the wide device of weight; only they move."""
    return widely(weight[ids.to(weight.device)])


def float64_error(d: int) -> float:
    """Bound on the rounding of a cosine computed in float64, in whatever order."""
    return (d + 8) * 2.0**-52


def exhaustive(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The nearest of the tokens `ids` (K,) for each row of x (N, d), none of them zero, from float64 scores of all: (N,) ids."""
    home = x.device
    x, weight, ids = widely(x), widely(weight), widely(ids)
    found = [torch.empty(0, dtype=torch.int64, device=x.device)]
    for part in x.split(ROWS):
        q = unit_rows(part)

        def score(start: int, stop: int, q: Tensor = q) -> Tensor:
            return q @ unit_rows(weight[ids[start:stop]]).T

        rows, kept = candidates(part, weight, ids, score, float64_error(x.shape[1]))
        found.append(settle(part, weight, rows, ids[kept]))
    return torch.cat(found).to(home)


def candidates(
    x: Tensor, weight: Tensor, ids: Tensor, score: Callable[[int, int], Tensor], error: float
) -> tuple[Tensor, Tensor]:
    """Every token of `ids` (K,) that may be the nearest of a row of x (N, d), as (row, position in ids).

    `score(start, stop)` gives the cosines (N, stop - start) with the tokens at these positions, each within `error` of the
    true one: what is more than twice that below the best cannot win. They and the answer are on the device of `ids`, x is on
    the wide device.
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
        if len(rows) > CANDIDATES:  # many near ties: one winner a row stands for those met so far
            winner = torch.searchsorted(widely(ids), settle(x, weight, rows, ids[kept]))
            present = torch.zeros(n, dtype=torch.bool, device=winner.device).index_fill_(0, widely(rows), True)
            rows, kept = (t.to(ids.device) for t in (present.nonzero()[:, 0], winner[present]))
            scores = best[rows]
    return rows, kept


def settle(x: Tensor, weight: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """The winner among each row's candidates, (N,) ids; rows without a candidate get 0. x and the answer are on the wide device."""
    n, d = x.shape
    winner = torch.zeros(n, dtype=torch.int64, device=x.device)
    rows, tokens = _without_single(winner, widely(rows), widely(tokens))
    if len(rows) == 0:
        return winner
    cosine = torch.cat([float64_cosine(x[r], gathered(weight, t)) for r, t in _chunks(rows, tokens, d)])
    best = torch.full((n,), -torch.inf, dtype=torch.float64, device=x.device).scatter_reduce_(0, rows, cosine, "amax")
    near = cosine >= best[rows] - 2 * float64_error(d)
    rows, tokens = rows[near], tokens[near]
    rows, tokens = _without_single(winner, rows, tokens)
    if len(rows) == 0:
        return winner
    parts = [
        arithmetic.cosine(power_scaled(x[r]), power_scaled(gathered(weight, t)))
        for r, t in _chunks(rows, tokens, 8 * d)
    ]
    hi, lo = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    # Sorted by (hi, lo) within each row, the last is the best; those that may equal it are within the error of it.
    order = torch.arange(len(rows), device=x.device)
    for key in (lo, hi, rows):
        order = order[key[order].argsort(stable=True)]
    last = torch.zeros(n, dtype=torch.int64, device=x.device).scatter_reduce_(
        0, rows[order], torch.arange(len(rows), device=x.device), "amax"
    )
    top = order[last[rows]]
    near = (hi - hi[top]) + (lo - lo[top]) >= -2 * arithmetic.error(d)
    return _settle_exactly(x, weight, rows[near], tokens[near], winner)


def _settle_exactly(x: Tensor, weight: Tensor, rows: Tensor, tokens: Tensor, winner: Tensor) -> Tensor:
    """Write the winner among candidates that double-double cannot tell apart; of parallel rows the lowest id stands for all."""
    kept: list[tuple[Tensor, Tensor]] = []
    if torch.float64 not in (x.dtype, weight.dtype):
        for _ in range(DIRECTIONS):
            lowest = torch.full_like(winner, len(weight)).scatter_reduce_(0, rows, tokens, "amin")
            first = tokens == lowest[rows]
            kept.append((rows[first], tokens[first]))
            same = [
                arithmetic.parallel(gathered(weight, t), gathered(weight, lowest[r]))
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
        winner[row] = candidates[arithmetic.first_largest(x[row], gathered(weight, candidates))]
    return winner


def _without_single(winner: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Write the winner of each row that has one candidate; the candidates of the other rows."""
    alone = torch.bincount(rows, minlength=len(winner))[rows] == 1
    winner[rows[alone]] = tokens[alone]
    return rows[~alone], tokens[~alone]


def float64_cosine(x: Tensor, e: Tensor) -> Tensor:
    """Cosines of the rows of x, none of them zero, with those of e; 0 where e is zero. Float64, on the wide device."""
    q, e = power_scaled(x), power_scaled(e)
    scale = e.norm(dim=-1) * q.norm(dim=-1)
    return torch.where(scale > 0, (q * e).sum(-1) / torch.where(scale > 0, scale, 1), 0)


def _chunks(rows: Tensor, tokens: Tensor, d: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, ELEMENTS // d)
    for start in range(0, len(rows), size):
        yield rows[start : start + size], tokens[start : start + size]


def power_scaled(x: Tensor) -> Tensor:
    """x in float64 on its wide device, squares and their products within range: float64 rows are scaled by a power of two, exactly.

    The values of the narrower dtypes are already in range: their squares lie from 1e-90 to 1e77.
    """
    if x.dtype != torch.float64:
        return widely(x).double()
    exponent = x.abs().amax(-1, keepdim=True).frexp().exponent
    half = exponent // 2  # in two steps: 2^1074 itself is not a float64
    return x.ldexp(-half).ldexp(half - exponent)


def unit_rows(x: Tensor) -> Tensor:
    """The rows of x in float64, on its wide device, divided by their norm; a zero row stays zero."""
    rows = power_scaled(x)
    norm = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1)
