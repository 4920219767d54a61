"""The torch implementation from within: its blocks, its bound, its precision; and the resolution of near ties."""

from __future__ import annotations

import contextlib

import pytest
import torch
from cases import SMALL_CASES, case, oracle
from inputs import assert_exact, hurting_pair, normal, product_precision, seeded

from pez_fast import TokenTable, nearest_token
from pez_fast._shared import resolve_ties
from pez_fast._shared.linear import linear
from pez_fast._torch import nearest as torch_nearest

# The torch implementation with blocks of a few rows and tokens.


@pytest.mark.parametrize("name", SMALL_CASES)
def test_small_blocks(name, monkeypatch):
    """Every block is ragged, and near ties are resolved again and again before the scan is over."""
    monkeypatch.setattr(torch_nearest, "ROWS", 7)
    for limit, size in (("TOKENS", 13), ("CANDIDATES", 5), ("ELEMENTS", 64)):
        monkeypatch.setattr(resolve_ties, limit, size)
    if len(case(name).weight) > 500:  # hundreds of blocks take seconds and show nothing new
        monkeypatch.setattr(resolve_ties, "TOKENS", 131)
        monkeypatch.setattr(resolve_ties, "ELEMENTS", 1 << 14)
    assert_exact(*case(name), "torch", "cpu", oracle(name))


@pytest.mark.parametrize("name", SMALL_CASES)
def test_exhaustive(name, monkeypatch):
    """The slow path of the implementations whose buffers overflow; zero rows never come here."""
    monkeypatch.setattr(resolve_ties, "ROWS", 7)
    monkeypatch.setattr(resolve_ties, "TOKENS", 131)
    x, weight, banned = case(name)
    table, directed = TokenTable(weight, banned), (x != 0).any(-1)
    assert torch.equal(resolve_ties.exhaustive(x[directed], weight, table.ids), oracle(name)[0][directed])


@pytest.fixture
def resolved(monkeypatch) -> list[int]:
    """How many candidates each call resolved."""
    counts: list[int] = []
    original = resolve_ties.resolve_ties

    def counting(q, weight, rows, tokens):
        counts.append(len(rows))
        return original(q, weight, rows, tokens)

    monkeypatch.setattr(resolve_ties, "resolve_ties", counting)
    return counts


def test_candidates_do_overflow(resolved, monkeypatch):
    """`test_small_blocks` reaches the code that it is meant for."""
    x, weight, _ = case("parallel")
    nearest_token(x, TokenTable(weight), "torch")
    assert len(resolved) == 1
    monkeypatch.setattr(resolve_ties, "TOKENS", 13)
    monkeypatch.setattr(resolve_ties, "CANDIDATES", 5)
    nearest_token(x, TokenTable(weight), "torch")
    assert len(resolved) > 3 and max(resolved) > 5


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_rows_without_direction_are_not_resolved(value, resolved):
    """All tokens are equally near to such a row: to resolve them would take a thousand times as long as the scan."""
    x, weight = normal(seeded("no direction"), 8, 10), normal(seeded("table"), 500, 10)
    x[::2] = value
    table = TokenTable(weight)
    found, _ = torch_nearest.nearest(x, table.weight, table.ids, table.prepared("torch"))
    assert found[::2].tolist() == [0 if value == 0 else -1] * 4
    assert sum(resolved) < len(weight)


# The bound on which the scan rests.


def scanned(x: torch.Tensor, table: TokenTable) -> torch.Tensor:
    q = resolve_ties.unit_rows(x)
    with torch_nearest._full_precision():
        return q.float() @ table.prepared("torch")[0].T


@pytest.mark.parametrize("d", [1, 2, 3, 17, 128, 768, 4096])
@pytest.mark.parametrize("kind", ["normal", "positive", "equal elements", "one large", "cancelling", "mixed"])
def test_scan_error(kind, d):
    g = seeded(f"{kind} {d}")
    x, weight = hurting_pair(kind, g, 40, 60, d)
    table = TokenTable(weight.contiguous())
    unit = [t.double() / t.double().norm(dim=-1, keepdim=True) for t in (x, table.weight[table.ids])]
    error = (scanned(x, table).double() - unit[0] @ unit[1].T).abs().max()
    assert error <= torch_nearest.scan_error(d)
    assert error > 0 or d == 1, "an input without any rounding tests nothing"


# Switches of torch that make its products less precise.


@pytest.mark.parametrize("fails", [False, True])
def test_the_scan_is_made_in_full_precision(fails, medium_precision, monkeypatch):
    """Not every CPU uses the permission to be less precise, so the test reads the settings themselves."""
    seen: list[tuple] = []

    def looking(q, rows):
        seen.append((*product_precision(), torch.is_autocast_enabled(q.device.type)))
        if fails:
            raise KeyboardInterrupt
        return linear(q, rows)

    monkeypatch.setattr(torch_nearest, "linear", looking)
    table = TokenTable(torch.eye(3))
    with torch.autocast("cpu", torch.bfloat16), contextlib.suppress(KeyboardInterrupt):
        nearest_token(torch.ones(3), table, "torch")
    assert seen == [("ieee", "ieee", False)]
