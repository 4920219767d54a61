"""What the tests share: the implementations that run here, tensors drawn from a seed, and checks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Context, Decimal, localcontext

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


def seeded(name: str) -> Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def normal(g: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def integers(g: Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=g)


def hurting_pair(kind: str, g: Generator, n: int, v: int, d: int) -> tuple[Tensor, Tensor]:
    """Draws x (n, d) and weight (v, d) whose scan rounds as badly as it can, in one way or another."""
    x, weight = normal(g, n, d), normal(g, v, d)
    if kind == "positive":  # every partial sum grows, so every rounding is as large as it can be
        x, weight = x.abs() + 0.1, weight.abs() + 0.1
    elif kind == "equal elements":
        x, weight = (torch.rand(len(t), 1, generator=g).add(0.5).expand(-1, d) for t in (x, weight))
    elif kind == "one large":
        x[:, 0], weight[:, 0] = 1e4, 1e4
    elif kind == "cancelling":
        x, weight = x.abs(), weight.sign() * (weight.abs() + 3)
    elif kind == "mixed":
        x, weight = (t * 10.0 ** integers(g, -6, 6, *t.shape) for t in (x, weight))
    elif kind == "subnormal halves":  # float16 holds most elements of the unit rows as subnormals
        x[:, 1:], weight[:, 1:] = x[:, 1:] * 1e-5, weight[:, 1:] * 1e-5
    return x.contiguous(), weight.contiguous()


def assert_exact(x: Tensor, weight: Tensor, banned, impl: str, device: str, expected=None) -> None:
    """Asserts that the search finds the ids of the oracle and, to SIMILARITY, its cosines."""
    ids, cosines = expected or reference.nearest_token(x, weight, banned)
    table = TokenTable(weight.to(device), banned)
    found, similarity = nearest_token(x.to(device), table, impl)
    assert found.dtype == torch.int64 and similarity.dtype == torch.float32
    assert found.device == similarity.device == table.device
    assert found.tolist() == ids.tolist()
    torch.testing.assert_close(similarity.cpu().double(), cosines, rtol=0, atol=SIMILARITY)


def assert_tied_with_the_best(x: Tensor, weight: Tensor, found: Tensor) -> None:
    """Asserts that no token's cosine is 2^-88 or more above that of the token found (N,) for the row of x (N, d)."""
    for row, winner in zip(x, found.tolist(), strict=True):
        cosines = [_precise_cosine(row.tolist(), e) for e in weight.tolist()]
        assert max(cosines) - cosines[winner] < Decimal(2) ** -88


def _precise_cosine(q: list[float], e: list[float]) -> Decimal:
    with localcontext(Context(prec=1000)):
        dot, qq, ee = (
            sum(Decimal(a) * Decimal(b) for a, b in zip(s, t, strict=True)) for s, t in ((q, e), (q, q), (e, e))
        )
        return dot / (qq * ee).sqrt()


@contextmanager
def refused(kind: type[Exception], match: str) -> Iterator[None]:
    """Asserts that the block raises this kind of error, and that its message matches and is one short line."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills whatever torch allocates without writing it with NaN, or with the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def product_precision() -> tuple[str, str]:
    """Returns how torch multiplies float32 on a CPU and on a GPU."""
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
