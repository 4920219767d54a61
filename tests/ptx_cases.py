"""Searches and splices that reach every path of the GPU kernels, small enough for the PTX machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from cards import ADA, AMPERE, HOPPER, Card
from inputs import integers, normal, seeded
from torch import Tensor

from pez_fast import reference

BLACKWELL = Card((10, 0), 4, 227 << 10)
SMALL_SHARED = Card((9, 0), 2, 60 << 10)  # room for three stages of the scan of a few queries
TWO = Card((9, 0), multiprocessors=2)  # so that a block or cluster has several tiles, one after another


class Inputs(NamedTuple):
    """x (N, d), weight (V, d), ids (K,) that may be found; states: which ways of deciding a row must occur."""

    x: Tensor
    weight: Tensor
    ids: Tensor | None = None
    card: Card = HOPPER
    states: tuple[int, ...] = ()


def plain(n: int, v: int, d: int, card: Card = HOPPER) -> Callable[[], Inputs]:
    """Normal rows; some queries are tokens, of which there are two each, and one is zero."""

    def make() -> Inputs:
        g = seeded(f"{n} {v} {d}")
        weight, x = normal(g, v, d), normal(g, n, d)
        weight[v // 2] = weight[v - 3]  # in another tile; copies of the last row would fill the last tile
        x[0] = weight[v - 3]
        x[n // 2] = 0.5 * weight[v // 3] + 1e-3 * x[n // 2]
        x[n - 1] = 0 if n > 2 else x[n - 1]
        return Inputs(x, weight, None, card, (1, 2) if n > 2 else ())

    return make


def twins(near: int, noise: float, table: torch.dtype, query: torch.dtype, layout: str = "packed") -> Callable:
    """Three queries with `near` tokens around each that the scan cannot tell apart."""

    def make() -> Inputs:
        g = seeded(f"twins {near} {noise}")
        x, weight = normal(g, 3, 72, dtype=torch.float64), normal(g, 400, 72, dtype=torch.float64)
        for row, first in zip(x, (0, 130, 260), strict=True):
            rest = normal(g, near, 72, dtype=torch.float64)
            weight[first : first + near] = row + noise * rest
            weight[first + 3] = row
        x, weight = x.to(query), weight.to(table)
        if layout == "strided":
            weight = weight.T.contiguous().T
        return Inputs(x, weight, None, HOPPER, (3,))

    return make


def exact_ties() -> Inputs:
    """Multiples of the same rows: many tokens tie exactly, some of them banned."""
    g = seeded("exact ties")
    base = integers(g, -9, 9, 5, 12).float()
    factor = integers(g, 1, 40, 150, 1) * integers(g, 0, 1, 150, 1).mul(2).sub(1)
    weight = base[integers(g, 0, 4, 150)] * factor
    return Inputs(torch.cat([base[:2], normal(g, 1, 12)]), weight, torch.arange(7, 150), HOPPER, (3,))


def not_finite() -> Inputs:
    g = seeded("not finite")
    x = normal(g, 5, 40)
    x[0, 3], x[1, 0], x[2, 39], x[3] = torch.nan, torch.inf, -torch.inf, 0
    return Inputs(x, normal(g, 200, 40))


def far_apart() -> Inputs:
    """float64 rows whose squares over- and underflow."""
    g = seeded("far apart")
    x, weight = normal(g, 4, 24, dtype=torch.float64), normal(g, 150, 24, dtype=torch.float64)
    weight *= 10.0 ** integers(g, -280, 280, 150, 1).double()
    return Inputs(x * torch.tensor([[1e-280], [1e280], [1.0], [1e-200]], dtype=torch.float64), weight)


def one_token() -> Inputs:
    g = seeded("one token")
    return Inputs(normal(g, 2, 5), normal(g, 1, 5))


SEARCHES: dict[str, Callable[[], Inputs]] = {
    "few, the ring goes round": plain(3, 1500, 100, TWO),
    "few, 32 rows": plain(20, 300, 64),
    "few, wide": plain(2, 130, 1160),
    "few, three stages": plain(3, 700, 100, SMALL_SHARED),
    "few on Ampere": plain(3, 300, 100, AMPERE),
    "few on Ada": plain(17, 200, 64, ADA),
    "many": plain(33, 300, 100),
    "many, the ring goes round": plain(33, 600, 304, TWO),
    "many on Ampere, the ring goes round": plain(33, 300, 300, AMPERE),
    "many on Ada": plain(33, 200, 64, ADA),
    "many on Blackwell": plain(34, 200, 64, BLACKWELL),
    "twins": twins(12, 1e-7, torch.float32, torch.float32),
    "four that reach the limit": twins(4, 1e-7, torch.float32, torch.float32),
    "twins in a float16 table": twins(12, 1e-4, torch.float16, torch.float32),
    "twins in a bfloat16 table, float16 queries": twins(10, 1e-3, torch.bfloat16, torch.float16),
    "twins in float64": twins(9, 1e-8, torch.float64, torch.float64),
    "twins in a transposed table": twins(9, 1e-7, torch.float32, torch.float64, "strided"),
    "exact ties": exact_ties,
    "not finite": not_finite,
    "far apart": far_apart,
    "one token": one_token,
}
SCANS = {  # of more rows than the decision is run for
    "two row tiles": plain(130, 200, 64),
    "three row tiles": plain(260, 140, 64),
    "nine row tiles, one block idle": plain(1030, 140, 64, Card((9, 0), 8)),
    "two row tiles on Ampere": plain(140, 300, 64, AMPERE),
}


@cache
def oracle(name: str) -> tuple[Tensor, Tensor]:
    """What the search `name` must find: ids (N,), -1 for a row that is not finite, and cosines (N,) float64."""
    x, weight, ids, *_ = EVERY[name]()
    banned = sorted(set(range(len(weight))) - set(range(len(weight)) if ids is None else ids.tolist()))
    finite = x.isfinite().all(-1)
    found, similarity = torch.full([len(x)], -1), torch.full([len(x)], torch.nan, dtype=torch.float64)
    found[finite], similarity[finite] = reference.nearest_token(x[finite], weight, banned)
    return found, similarity


def thousand_tiles() -> Inputs:
    """More tiles than the decision looks at in one round."""
    g = seeded("a thousand tiles")
    weight, x = normal(g, 140_000, 8), normal(g, 3, 8)
    weight[139_990] = 2 * weight[70_001]
    x[0] = weight[70_001]
    return Inputs(x, weight)


DECISIONS = {"a thousand tiles": thousand_tiles}  # of more tokens than the scan is run for
EVERY = SEARCHES | SCANS | DECISIONS


class Splice(NamedTuple):
    """template (B, S, d), hard (R, L, d), slots (L,), owner (B,)."""

    template: Tensor
    hard: Tensor
    slots: Tensor
    owner: Tensor

    @property
    def expected(self) -> Tensor:
        out = self.template.clone()
        rows = self.hard[self.owner]
        if rows.dtype == torch.float64 and out.dtype.itemsize == 2:
            rows = rows.float()  # as torch converts
        out[:, self.slots] = rows.to(out.dtype)
        return out

    @property
    def expected_backward(self) -> Tensor:
        """The sum over the rows of each prompt, one row after another."""
        wide = torch.promote_types(self.template.dtype, torch.float32)
        total = torch.zeros(self.hard.shape, dtype=wide)
        for row, owner in enumerate(self.owner.tolist()):
            total[owner] += self.template[row, self.slots].to(wide)
        return total


def splice(
    rows: int, positions: int, d: int, prompts: int, slots: int, dtype: torch.dtype, hard: torch.dtype
) -> Splice:
    g = seeded(f"splice {rows} {positions} {d} {dtype}")
    template = normal(g, rows, positions, 2 * d, dtype=torch.float64).to(dtype)[:, :, ::2]  # strided
    values = normal(g, prompts, slots, d, dtype=torch.float64).to(hard)
    where = torch.randperm(positions, generator=g)[:slots]
    return Splice(template, values, where, integers(g, 0, prompts - 1, rows))


SPLICES: dict[str, Callable[[], Splice]] = {
    "float32": lambda: splice(3, 9, 130, 2, 4, torch.float32, torch.float32),
    "float64": lambda: splice(2, 5, 20, 3, 3, torch.float64, torch.float32),
    "float16": lambda: splice(2, 5, 20, 2, 3, torch.float16, torch.float64),
    "bfloat16": lambda: splice(2, 5, 20, 2, 3, torch.bfloat16, torch.float32),
    "more slots than threads": lambda: splice(1, 140, 3, 1, 131, torch.float32, torch.bfloat16),
    "more rows than lanes": lambda: splice(45, 2, 9, 2, 2, torch.float32, torch.float32),
}
