"""Inputs that hurt, shared by the tests; every one is the same in every run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import NamedTuple

import pytest
import torch
from tolerances import SIMILARITY
from torch import Generator, Tensor

from pez_fast import TokenTable, info, nearest_token, reference

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
IMPLS = [
    pytest.param(impl, device, id=f"{impl}-{device}")
    for device in DEVICES
    for impl, usable in info(device)["implementations"].items()
    if usable is True
]
each_impl = pytest.mark.parametrize(("impl", "device"), IMPLS)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = {"round": (256, 512, 128), "ragged": (252, 507, 128), "raggeder": (252, 507, 123)}


class Case(NamedTuple):
    """What to search for, where, and what may not be found."""

    x: Tensor  # (N, d)
    weight: Tensor  # (V, d)
    banned: tuple[int, ...] = ()


CASES: dict[str, Callable[[Generator], Case]] = {}


def seeded(name: str) -> Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


@cache
def case(name: str) -> Case:
    return CASES[name](seeded(name))


@cache
def oracle(name: str) -> tuple[Tensor, Tensor]:
    return reference.nearest_token(*case(name))


def assert_exact(x: Tensor, weight: Tensor, banned, impl: str, device: str, expected=None) -> None:
    """The ids of the oracle and, to SIMILARITY, its cosines."""
    ids, cosines = expected or reference.nearest_token(x, weight, banned)
    table = TokenTable(weight.to(device), banned)
    found, similarity = nearest_token(x.to(device), table, impl)
    assert found.dtype == torch.int64 and similarity.dtype == torch.float32
    assert found.device == similarity.device == table.device
    assert found.tolist() == ids.tolist()
    torch.testing.assert_close(similarity.cpu().double(), cosines, rtol=0, atol=SIMILARITY)


def assert_level_with_the_best(x: Tensor, weight: Tensor, found: Tensor) -> None:
    """No token's cosine is 2^-88 above that of the one found."""
    for row, winner in zip(x, found.tolist(), strict=True):
        cosines = [_precise_cosine(row.tolist(), e) for e in weight.tolist()]
        assert max(cosines) - cosines[winner] < Decimal(2) ** -88


def _precise_cosine(q: list[float], e: list[float]) -> Decimal:
    with localcontext(Context(prec=1000)):
        dot, qq, ee = (
            sum(Decimal(a) * Decimal(b) for a, b in zip(s, t, strict=True)) for s, t in ((q, e), (q, q), (e, e))
        )
        return dot / (qq * ee).sqrt()


def hurting_pair(kind: str, g: Generator, n: int, v: int, d: int) -> tuple[Tensor, Tensor]:
    """x (n, d) and a table (v, d) whose scan rounds as badly as it can, in one way or another."""
    x, weight = normal(g, n, d), normal(g, v, d)
    if kind == "positive":  # every partial sum grows, so that every rounding is as large as it can be
        x, weight = x.abs() + 0.1, weight.abs() + 0.1
    elif kind == "equal elements":
        x, weight = (torch.rand(len(t), 1, generator=g).add(0.5).expand(-1, d) for t in (x, weight))
    elif kind == "one large":
        x[:, 0], weight[:, 0] = 1e4, 1e4
    elif kind == "cancelling":
        x, weight = x.abs(), weight.sign() * (weight.abs() + 3)
    elif kind == "mixed":
        x, weight = (t * 10.0 ** integers(g, -6, 6, *t.shape) for t in (x, weight))
    elif kind == "subnormal halves":  # most elements of the unit rows are subnormal in float16
        x[:, 1:], weight[:, 1:] = x[:, 1:] * 1e-5, weight[:, 1:] * 1e-5
    return x.contiguous(), weight.contiguous()


@contextmanager
def refused(kind: type[Exception], match: str) -> Iterator[None]:
    """The error comes, says this, and is one line."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever torch allocates without writing it is NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def product_precision() -> tuple[str, str]:
    """How float32 products are made on a CPU and on a GPU."""
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def made(build: Callable[[Generator], Case]) -> Callable[[Generator], Case]:
    CASES[build.__name__.lstrip("_")] = build
    return build


def normal(g: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def integers(g: Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=g)


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
    """Rows that differ from one another by one unit in the last place of one element."""
    base = normal(g, 1, 32)
    rows = base.repeat(64, 1)
    at = torch.arange(64)
    up = torch.where(at % 2 == 0, torch.inf, -torch.inf)
    rows[at, at // 2] = torch.nextafter(rows[at, at // 2], up)
    return Case(torch.cat([normal(g, 12, 32), base, rows[:8]]), torch.cat([rows, base]))


@made
def _parallel(g):
    """e, 2e, 3e, …: exact ties between rows that are not equal."""
    e = integers(g, -9, 9, 7, 6).float()
    factors = integers(g, 1, 40, 400, 1) * integers(g, 0, 1, 400, 1).mul(2).sub(1)
    return Case(torch.cat([normal(g, 12, 6), e]), e[integers(g, 0, 6, 400)] * factors)


@made
def _tokens_themselves(g):
    weight = normal(g, 300, 24)
    return Case(weight[integers(g, 0, 299, 60)] * torch.rand(60, 1, generator=g).add(0.5), weight)


@made
def _between_two(g):
    """Queries whose cosine with two orthogonal tokens of one norm is exactly the same, of which the lower id wins."""
    weight = torch.eye(16)[torch.randperm(16, generator=g)] * 3
    i, j = torch.randperm(16, generator=g).view(2, 8)
    return Case(weight[i] + weight[j], weight)


@made
def _permuted(g):
    """Rows with the same elements in another order, queries that cannot see the order of many of them."""
    base = integers(g, -20, 20, 10).float()
    weight = torch.stack([base[torch.randperm(10, generator=g)] for _ in range(300)])
    x = integers(g, -2, 2, 12, 5).float().repeat_interleave(2, 1)
    return Case(torch.cat([x, torch.ones(1, 10)]), weight)


@made
def _small_integers(g):
    """Ties everywhere, between rows of every norm."""
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
    """Norms from 1e-30 to 1e30 side by side, in the table and in the queries."""
    x, weight = normal(g, 30, 12), normal(g, 300, 12)
    return Case(*(t * 10.0 ** integers(g, -30, 30, len(t), 1) for t in (x, weight)))


@made
def _mixed_norms_float64(g):
    x, weight = normal(g, 30, 12, dtype=torch.float64), normal(g, 300, 12, dtype=torch.float64)
    return Case(*(t * 10.0 ** integers(g, -290, 290, len(t), 1).double() for t in (x, weight)))


@made
def _mixed_columns(g):
    """Within a row, elements from 1e-20 to 1e20."""
    x, weight = normal(g, 30, 12), normal(g, 300, 12)
    return Case(*(t * 10.0 ** integers(g, -20, 20, *t.shape) for t in (x, weight)))


@made
def _zero_rows(g):
    """In the table, where one is the best answer to what points away from everything else, and in the queries."""
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
    """Each token has a twin and a parallel; of some the lowest id is banned."""
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
    """All cosines near 1, as in the embeddings of a trained language model."""
    mean = 30 * normal(g, 1, 64)
    return Case(mean + normal(g, 40, 64), mean + normal(g, 800, 64))


@made
def _farey(g):
    """Cosines of float32 rows that differ by 2^-119 and 2^-95: no fixed precision tells them apart."""
    q = [2.0**24 - 1, 2.0**24 - 3]
    near = [[16777214.0, 16777212.0], [8388608.0, 8388607.0], [16777213.0, 16777211.0], [8388607.0, 8388606.0]]
    return Case(torch.tensor([q, near[3], near[2]]), torch.tensor(near))


@made
def _far_below_one(g):
    """Cosines of 1e-30 and 2e-30: different, and both next to nothing."""
    return Case(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0, 1e-30], [1.0, 2e-30], [1.0, 1e-30]]))


@made
def _far_below_one_float64(g):
    """Cosines of 1e-400 and 2e-400, which are no float64 at all."""
    weight = torch.tensor([[1e200, 1e-200], [1e200, 2e-200], [1e200, 1e-200]], dtype=torch.float64)
    return Case(torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64), weight)


# Small enough to be searched in blocks of a few rows and tokens.
SMALL_CASES = [name for name in CASES if name not in (*SHAPES, "wide", "large_vocabulary")]
# Cosines that differ by less than double-double tells apart, which is what the kernels on GPUs end with.
BEYOND_DOUBLE_DOUBLE = ("farey", "far_below_one_float64")
