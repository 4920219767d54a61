"""Named inputs on which a search can go wrong; every run of the tests builds the same ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from inputs import integers, normal, seeded
from torch import Generator, Tensor

from pez_fast import reference

SHAPES = {"round": (256, 512, 128), "ragged": (252, 507, 128), "raggeder": (252, 507, 123)}


class Case(NamedTuple):
    """Holds the queries x, the table weight, and the tokens that no search may find."""

    x: Tensor  # (N, d)
    weight: Tensor  # (V, d)
    banned: tuple[int, ...] = ()


CASES: dict[str, Callable[[Generator], Case]] = {}


@cache
def case(name: str) -> Case:
    return CASES[name](seeded(name))


@cache
def oracle(name: str) -> tuple[Tensor, Tensor]:
    return reference.nearest_token(*case(name))


def made(build: Callable[[Generator], Case]) -> Callable[[Generator], Case]:
    CASES[build.__name__.lstrip("_")] = build
    return build


for _name, (_n, _v, _d) in {
    **SHAPES,
    "no_rows": (0, 50, 8),
    "one_row": (1, 50, 8),
    "one_token": (5, 1, 8),
    "one_of_everything": (1, 1, 1),
    "one_dimension": (9, 30, 1),
    "two_dimensions": (40, 3000, 2),
    "wide": (5, 40, 4096),
    "large_vocabulary": (3, 262_144, 8),
}.items():
    CASES[_name] = lambda g, n=_n, v=_v, d=_d: Case(normal(g, n, d), normal(g, v, d))


@made
def _duplicates(g):
    rows = normal(g, 5, 16)
    return Case(normal(g, 6, 16), rows[integers(g, 0, 4, 3000)])


@made
def _all_equal(g):
    return Case(normal(g, 4, 8), normal(g, 1, 8).expand(1500, 8))


@made
def _last_bit(g):
    """Rows of weight differ from one another by one unit in the last place of one element."""
    base = normal(g, 1, 32)
    rows = base.repeat(64, 1)
    at = torch.arange(64)
    up = torch.where(at % 2 == 0, torch.inf, -torch.inf)
    rows[at, at // 2] = torch.nextafter(rows[at, at // 2], up)
    return Case(torch.cat([normal(g, 12, 32), base, rows[:8]]), torch.cat([rows, base]))


@made
def _parallel(g):
    """The table holds e, 2e, 3e, …: rows that are not equal tie exactly."""
    e = integers(g, -9, 9, 7, 6).float()
    factors = integers(g, 1, 40, 400, 1) * integers(g, 0, 1, 400, 1).mul(2).sub(1)
    return Case(torch.cat([normal(g, 12, 6), e]), e[integers(g, 0, 6, 400)] * factors)


@made
def _tokens_themselves(g):
    weight = normal(g, 300, 24)
    return Case(weight[integers(g, 0, 299, 60)] * torch.rand(60, 1, generator=g).add(0.5), weight)


@made
def _between_two(g):
    """Each query has exactly the same cosine with two orthogonal tokens of one norm; the lower id wins."""
    weight = torch.eye(16)[torch.randperm(16, generator=g)] * 3
    i, j = torch.randperm(16, generator=g).view(2, 8)
    return Case(weight[i] + weight[j], weight)


@made
def _permuted(g):
    """Rows of weight hold the same elements in another order; the queries x cannot see the order of many of them."""
    base = integers(g, -20, 20, 10).float()
    weight = torch.stack([base[torch.randperm(10, generator=g)] for _ in range(300)])
    x = integers(g, -2, 2, 12, 5).float().repeat_interleave(2, 1)
    return Case(torch.cat([x, torch.ones(1, 10)]), weight)


@made
def _small_integers(g):
    """Rows of every norm tie with one another."""
    return Case(integers(g, -2, 2, 40, 3).float(), integers(g, -2, 2, 300, 3).float())


for _name, _scale, _dtype in (
    ("huge", 3e38, torch.float32),
    ("tiny", 1e-38, torch.float32),
    ("subnormal", 3e-44, torch.float32),
    ("huge_bfloat16", 3e38, torch.bfloat16),
    ("subnormal_float16", 3e-6, torch.float16),
    ("huge_float64", 1e308, torch.float64),
    ("tiny_float64", 1e-307, torch.float64),
    ("subnormal_float64", 1e-310, torch.float64),
):
    CASES[_name] = lambda g, scale=_scale, dtype=_dtype: Case(
        *((torch.rand(n, 12, generator=g, dtype=torch.float64).mul(2).sub(1) * scale).to(dtype) for n in (20, 200))
    )


@made
def _mixed_norms(g):
    """The table and the queries hold norms from 1e-30 to 1e30."""
    x, weight = normal(g, 30, 12), normal(g, 300, 12)
    return Case(*(t * 10.0 ** integers(g, -30, 30, len(t), 1) for t in (x, weight)))


@made
def _mixed_norms_float64(g):
    x, weight = normal(g, 30, 12, dtype=torch.float64), normal(g, 300, 12, dtype=torch.float64)
    return Case(*(t * 10.0 ** integers(g, -290, 290, len(t), 1).double() for t in (x, weight)))


@made
def _mixed_columns(g):
    """Each row holds elements from 1e-20 to 1e20."""
    x, weight = normal(g, 30, 12), normal(g, 300, 12)
    return Case(*(t * 10.0 ** integers(g, -20, 20, *t.shape) for t in (x, weight)))


@made
def _zero_rows(g):
    """Rows of weight and of x are zero; a zero token is the best one for a query that points away from all others."""
    weight = normal(g, 40, 6).abs()
    weight[[7, 20, 39]] = 0
    x = torch.cat([-normal(g, 5, 6).abs(), normal(g, 5, 6), torch.zeros(3, 6)])
    return Case(x[torch.randperm(13, generator=g)], weight)


@made
def _zero_table(g):
    return Case(torch.cat([normal(g, 3, 4), torch.zeros(2, 4)]), torch.zeros(30, 4), (0, 2))


@made
def _opposite(g):
    """Every cosine is negative."""
    return Case(-normal(g, 20, 8).abs(), normal(g, 200, 8).abs())


@made
def _one_allowed(g):
    return Case(
        torch.cat([normal(g, 6, 8), torch.zeros(1, 8)]), normal(g, 50, 8), tuple(v for v in range(50) if v != 17)
    )


@made
def _banned_twins(g):
    """Each token has an equal one and a parallel one; for some of them the lowest id is banned."""
    rows = normal(g, 30, 8)
    weight = torch.cat([rows, rows, 2 * rows])
    return Case(torch.cat([weight[::3], normal(g, 10, 8)]), weight, (*range(0, 30, 2), *range(30, 60, 4)))


for _name, _noise in (("clustered", 1e-3), ("tightly_clustered", 1e-6)):

    def _build(g, noise=_noise):
        centres = normal(g, 8, 48)
        weight = centres[integers(g, 0, 7, 1500)] + noise * normal(g, 1500, 48)
        return Case(torch.cat([centres, centres[:2] + noise * normal(g, 2, 48), normal(g, 20, 48)]), weight)

    CASES[_name] = _build


@made
def _anisotropic(g):
    """All cosines are near 1, as they are in the embeddings of a trained language model."""
    mean = 30 * normal(g, 1, 64)
    return Case(mean + normal(g, 40, 64), mean + normal(g, 800, 64))


@made
def _farey(g):
    """Cosines of float32 rows differ by 2^-119 and 2^-95; no fixed precision tells all such cosines apart."""
    q = [2.0**24 - 1, 2.0**24 - 3]
    near = [[16777214.0, 16777212.0], [8388608.0, 8388607.0], [16777213.0, 16777211.0], [8388607.0, 8388606.0]]
    return Case(torch.tensor([q, near[3], near[2]]), torch.tensor(near))


@made
def _far_below_one(g):
    """Cosines are 1e-30 and 2e-30: they differ, and both are almost zero."""
    return Case(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0, 1e-30], [1.0, 2e-30], [1.0, 1e-30]]))


@made
def _far_below_one_float64(g):
    """Cosines are 1e-400 and 2e-400, which float64 cannot hold."""
    weight = torch.tensor([[1e200, 1e-200], [1e200, 2e-200], [1e200, 1e-200]], dtype=torch.float64)
    return Case(torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64), weight)


# These are small enough for a search in blocks of a few rows and tokens.
SMALL_CASES = [name for name in CASES if name not in (*SHAPES, "wide", "large_vocabulary")]
# Their cosines are too close for double-double, with which the kernels on GPUs end.
BEYOND_DOUBLE_DOUBLE = ("farey", "far_below_one_float64")
