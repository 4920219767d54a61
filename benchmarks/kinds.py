"""Kinds of tables and queries on which a search can go wrong, drawn at random, for parity.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

NARROW = (torch.float32, torch.float16, torch.bfloat16)
WORK = 4e8  # multiplications of the oracle for one table; large tables get few queries
MOST_QUERIES = 1024  # of one table, so that there are many tables


class Case(NamedTuple):
    """A table, its banned tokens, and queries."""

    weight: Tensor  # (V, d)
    x: Tensor  # (N, d)
    banned: Tensor | None = None  # ids


class Kind(NamedTuple):
    build: Callable[[Generator, int], Case]  # the int: the most queries
    share: float  # of all queries, in units of the sum


KINDS: dict[str, Kind] = {}


def kind(name: str, share: float):
    def add(build: Callable[[Generator, int], Case]) -> Callable[[Generator, int], Case]:
        KINDS[name] = Kind(build, share)
        return build

    return add


def normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def integers(g: Generator, low: int, high: int, *shape: int) -> Tensor:
    """From low to high, both included."""
    return torch.randint(low, high + 1, shape, generator=g)


def between(g: Generator, low: int, high: int) -> int:
    """A whole number, its logarithm uniform."""
    return min(high, int(math.exp(float(torch.rand(1, generator=g)) * math.log((high + 1) / low)) * low))


def pick(g: Generator, choices):
    return choices[int(integers(g, 0, len(choices) - 1, 1))]


def count(weight: Tensor, most: int) -> int:
    return max(1, min(most, MOST_QUERIES, int(WORK / weight.numel())))


def queries(g: Generator, weight: Tensor, most: int) -> Tensor:
    """Queries in random order, float64: a quarter each of normal deviates, tokens, points between two, noisy tokens."""
    n = count(weight, most)
    i, j = integers(g, 0, len(weight) - 1, 2, n)
    a, b = weight[i].double(), weight[j].double()
    size = a.norm(dim=-1, keepdim=True) / math.sqrt(weight.shape[1])
    noise = normal(g, n, weight.shape[1]) * size
    scale = torch.rand(n, 1, generator=g, dtype=torch.float64) + 0.5
    kinds = torch.stack([torch.where(size > 0, noise, normal(g, *noise.shape)), a * scale, a + b, a + 0.1 * noise])
    return kinds[integers(g, 0, 3, n), torch.arange(n)]


def mixed(g: Generator, weight: Tensor, most: int, banned: Tensor | None = None) -> Case:
    """The table in one narrow dtype, the queries in another."""
    weight = weight.to(pick(g, NARROW))
    return Case(weight, queries(g, weight, most).to(pick(g, (*NARROW, torch.float32))), banned)


@kind("gaussian", 24)
def _(g: Generator, most: int) -> Case:
    return mixed(g, normal(g, between(g, 1, 5000), between(g, 1, 1024)), most)


@kind("anisotropic", 8)
def _(g: Generator, most: int) -> Case:
    """All cosines near 1, as in the embeddings of a trained language model."""
    d = between(g, 2, 512)
    mean = 30 * normal(g, 1, d)
    weight = (mean + normal(g, between(g, 2, 3000), d)).float()
    return Case(weight, (mean + normal(g, count(weight, most), d)).float())


def _clustered(noise: float) -> Callable[[Generator, int], Case]:
    def build(g: Generator, most: int) -> Case:
        v, d, centres = between(g, 2, 3000), between(g, 2, 256), between(g, 1, 40)
        weight = (normal(g, centres, d)[integers(g, 0, centres - 1, v)] + noise * normal(g, v, d)).float()
        return Case(weight, queries(g, weight, most).float())

    return build


kind("clustered 1e-3", 6)(_clustered(1e-3))
kind("clustered 1e-6", 6)(_clustered(1e-6))


@kind("repeated rows", 6)
def _(g: Generator, most: int) -> Case:
    rows = normal(g, between(g, 1, 100), between(g, 1, 128))
    return mixed(g, rows[integers(g, 0, len(rows) - 1, between(g, 1, 5000))], most)


@kind("parallel rows", 5)
def _(g: Generator, most: int) -> Case:
    """e, 2e, 3e, … and their opposites."""
    v, rows = between(g, 2, 2000), integers(g, -9, 9, between(g, 1, 50), between(g, 1, 64)).double()
    signs = integers(g, 0, 1, v, 1) * 2 - 1
    weight = (rows[integers(g, 0, len(rows) - 1, v)] * integers(g, 1, 40, v, 1) * signs).float()
    return Case(weight, queries(g, weight, most).float())


@kind("last bit", 5)
def _(g: Generator, most: int) -> Case:
    """Rows that differ from one another by one unit in the last place of one element."""
    v, d = between(g, 2, 500), between(g, 2, 256)
    rows = normal(g, 1, d).float().repeat(v, 1)
    at, column = torch.arange(v), integers(g, 0, d - 1, v)
    rows[at, column] = torch.nextafter(rows[at, column], torch.where(at % 2 == 0, torch.inf, -torch.inf))
    return Case(rows, queries(g, rows, most).float())


@kind("huge, tiny and subnormal", 6)
def _(g: Generator, most: int) -> Case:
    scale, dtype = pick(
        g,
        [
            (3e38, torch.float32),
            (1e-38, torch.float32),
            (3e-44, torch.float32),
            (3e38, torch.bfloat16),
            (1e-39, torch.bfloat16),
            (6e4, torch.float16),
            (3e-6, torch.float16),
        ],
    )
    shape = between(g, 1, 2000), between(g, 1, 256)
    weight, x = (
        ((torch.rand(n, shape[1], generator=g, dtype=torch.float64) * 2 - 1) * scale).to(dtype)
        for n in (shape[0], MOST_QUERIES)
    )
    x = x[: count(weight, most)]
    x[::3] = weight[integers(g, 0, len(weight) - 1, len(x[::3]))]
    return Case(weight, x)


@kind("norms from 1e-30 to 1e30", 6)
def _(g: Generator, most: int) -> Case:
    v, d = between(g, 1, 2000), between(g, 1, 256)
    weight = (normal(g, v, d) * 10.0 ** integers(g, -30, 30, v, 1)).float()
    x = queries(g, weight, most)
    return Case(weight, (x / x.norm(dim=-1, keepdim=True) * 10.0 ** integers(g, -30, 30, len(x), 1)).float())


def _columns(decades: int) -> Callable[[Generator, int], Case]:
    def build(g: Generator, most: int) -> Case:
        v, d = between(g, 1, 2000), between(g, 1, 128)
        weight = (normal(g, v, d) * 10.0 ** integers(g, -decades, decades, v, d)).float()
        n = count(weight, most)
        return Case(weight, (normal(g, n, d) * 10.0 ** integers(g, -decades, decades, n, d)).float())

    return build


kind("columns from 1e-8 to 1e8", 5)(_columns(8))
kind("columns from 1e-20 to 1e20", 2)(_columns(20))


@kind("zero rows", 4)
def _(g: Generator, most: int) -> Case:
    """All tokens, and half of the queries, lie on one side; the other queries lie opposite."""
    weight = normal(g, between(g, 1, 500), between(g, 1, 64)).abs()
    weight[torch.rand(len(weight), generator=g) < 0.1] = 0
    x = queries(g, weight, most)
    x[::2] = -x[::2].abs()
    x[::7] = 0
    return Case(weight.float(), x.float())


@kind("integers with ties", 3)
def _(g: Generator, most: int) -> Case:
    most = min(most, 512)  # ties of different directions are resolved row by row
    weight = integers(g, -2, 2, between(g, 2, 400), between(g, 1, 5)).to(pick(g, NARROW))
    return Case(weight, integers(g, -3, 3, count(weight, most), weight.shape[1]).to(pick(g, NARROW)))


@kind("permuted rows", 1)
def _(g: Generator, most: int) -> Case:
    """Rows with the same elements in another order, and queries that cannot see the order of many of them."""
    base = integers(g, -20, 20, 10)
    weight = torch.stack([base[torch.randperm(10, generator=g)] for _ in range(between(g, 2, 200))]).float()
    return Case(weight, integers(g, -2, 2, min(most, 128), 5).float().repeat_interleave(2, 1))


@kind("banned twins", 5)
def _(g: Generator, most: int) -> Case:
    """Each token has a twin and a parallel row; half of all are banned."""
    rows = normal(g, between(g, 1, 500), between(g, 1, 128))
    weight = torch.cat([rows, rows, 2 * rows])
    return mixed(g, weight, most, torch.randperm(len(weight), generator=g)[: len(weight) // 2])


@kind("one or two dimensions", 3)
def _(g: Generator, most: int) -> Case:
    return mixed(g, normal(g, between(g, 1, 3000), pick(g, (1, 2))), min(most, 1024))


@kind("float64", 3)
def _(g: Generator, most: int) -> Case:
    weight = normal(g, between(g, 1, 3000), between(g, 1, 256)) * 10.0 ** pick(g, (-300, -30, 0, 30, 300))
    n = count(weight, most)
    x = normal(g, n, weight.shape[1])
    return Case(weight, x if pick(g, (True, False)) else x.float())


@kind("wide", 1.2)
def _(g: Generator, most: int) -> Case:
    return mixed(g, normal(g, between(g, 50, 3000), between(g, 1024, 4096)), most)


@kind("large vocabulary", 0.8)
def _(g: Generator, most: int) -> Case:
    return mixed(g, normal(g, between(g, 20_000, 50_000), between(g, 1, 64)), most)


@kind("49,408 tokens", 0.5)
def _(g: Generator, most: int) -> Case:
    d = pick(g, (512, 768, 1024))
    weight = (torch.randn(49_408, d, generator=g) * 0.02).to(pick(g, NARROW))
    n = min(most, 512)
    i, j = integers(g, 0, 49_407, 2, n)
    x = torch.stack([weight[i].float(), weight[i].float() + weight[j].float(), torch.randn(n, d, generator=g)])
    return Case(weight, x[integers(g, 0, 2, n), torch.arange(n)])
