"""The CUDA kernels: their arithmetic, simulated on the host from the same headers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cases import BEYOND_DOUBLE_DOUBLE, CASES, Case, case, oracle
from inputs import DTYPES, assert_tied_with_the_best, hurting_pair, integers, normal, seeded
from tolerances import SIMILARITY

from pez_fast import TokenTable, info, reference
from pez_fast._shared import resolve_ties

if info("cpu")["implementations"]["cpu"] is not True:
    pytest.skip(info("cpu")["implementations"]["cpu"], allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from simulated import nearest as simulate

from pez_fast import _C

EVERYTHING = 3.0  # added to the bound, it makes every token of every tile be compared exactly


def simulated(case: Case, coarser: float = 0.0, card: str = "hopper") -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """ids, cosines, and how many rows were certified, rescored and rescanned."""
    x, weight, banned = case
    table, counts = TokenTable(weight, banned), torch.zeros(3, dtype=torch.int64)
    found = simulate.nearest(x, weight, table.ids, simulate.prepare(weight, table.ids), counts, coarser, card)
    return *found, counts.tolist()


@pytest.mark.parametrize("coarser", [0.0, EVERYTHING], ids=["certified", "overflowing"])
@pytest.mark.parametrize("name", CASES)
def test_equals_oracle(name, coarser):
    if name == "large_vocabulary" and coarser:
        pytest.skip("minutes")
    ids, cosines = oracle(name)
    found, similarity, counts = simulated(case(name), coarser)
    if name in BEYOND_DOUBLE_DOUBLE:
        assert_tied_with_the_best(case(name).x, case(name).weight, found)
    else:
        assert found.tolist() == ids.tolist()
    torch.testing.assert_close(similarity.double(), cosines, rtol=0, atol=SIMILARITY)
    directed = int((case(name).x != 0).any(-1).sum())
    assert sum(counts) == directed
    if coarser and len(TokenTable(*case(name)[1:]).ids) > 1:
        assert counts == [0, 0, directed]


@pytest.mark.parametrize("table_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_dtypes_and_layouts(x_dtype, table_dtype):
    g = seeded("dtypes")
    weight = torch.cat([normal(g, 300, 40), integers(g, -1, 1, 60, 40)]).to(table_dtype)[:, ::2]
    x = torch.cat([normal(g, 12, 20), integers(g, -1, 1, 12, 20)]).to(x_dtype).T.contiguous().T
    found, _, _ = simulated(Case(x, weight))
    assert found.tolist() == reference.nearest_token(x, weight)[0].tolist()


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("card", simulate.CARDS)
def test_packed_rows(card, table_dtype):
    """Rows that are read 16 bytes at a time, several chunks a lane, near ties among them."""
    g = seeded(f"packed {card} {table_dtype}")
    weight = normal(g, 700, 1160)
    weight[350:] = weight[:350] * (1 + 2**-9 * normal(g, 350, 1))
    weight, x = weight.to(table_dtype), normal(g, 40, 1160)
    x[::2] = weight[::35].float() + 0.1 * x[::2]
    found, similarity, counts = simulated(Case(x, weight), card=card)
    ids, cosines = reference.nearest_token(x, weight)
    assert found.tolist() == ids.tolist() and counts[1] + counts[2] > 0
    torch.testing.assert_close(similarity.double(), cosines.double(), rtol=0, atol=SIMILARITY)


def test_the_last_row_of_a_table():
    """Copies of the last row pad the table: they are never found, and never hide that all cosines are negative."""
    g = seeded("last")
    for rows in (1, 2, 127, 128, 129, 200):
        weight = normal(g, rows, 64).abs()
        x = torch.cat([-weight[-1:], weight[-1:], -normal(g, 5, 64).abs()])
        assert simulated(Case(x, weight))[0].tolist() == reference.nearest_token(x, weight)[0].tolist()


def test_not_finite():
    x = normal(seeded("finite"), 4, 8)
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    found, similarity, counts = simulated(Case(x, normal(seeded("table"), 300, 8)))
    assert found[[1, 3]].tolist() == [-1, -1] and similarity[[1, 3]].isnan().all()
    assert (found[[0, 2]] >= 0).all() and sum(counts) == 2


def test_what_the_scan_decides():
    """The scan decides most random rows, and none in clusters."""
    g = seeded("decides")
    weight = normal(g, 2000, 128)
    certified, rescored, rescanned = simulated(Case(normal(g, 200, 128), weight))[2]
    assert certified > 150 and rescored > 0 and certified + rescored + rescanned == 200
    close = normal(g, 1, 128) + 1e-4 * weight
    assert simulated(Case(close[:50], close))[2] == [0, 0, 50]


@pytest.mark.parametrize("d", [1, 3, 64, 100, 1024, 4096])
@pytest.mark.parametrize("kind", ["normal", "positive", "one large", "mixed", "subnormal halves"])
def test_bound(kind, d):
    """Rounding to fp16 takes no more from a score than the bound that `decide` is given."""
    g = seeded(f"{kind} {d}")
    x, weight = hurting_pair(kind, g, 20, 150, d)
    unit, residual, norm = simulate.prepare(weight, torch.arange(150))
    torch.testing.assert_close(norm, resolve_ties.power_scaled(weight).norm(dim=-1))
    assert torch.equal(unit[150:], unit[149:150].expand(len(unit) - 150, -1))
    half = unit[:150, :d].double()
    exact = resolve_ties.unit_rows(weight)
    assert ((exact - half).norm(dim=-1) <= residual.double()).all()
    q = resolve_ties.unit_rows(x)
    error = (q - q.half().double()).norm(dim=-1, keepdim=True) * (1 + 1e-6) + 1e-12
    off = (q.half().double() @ half.T - q @ exact.T).abs()
    assert (off <= residual.double() + error * (1 + residual.double())).all()
    assert off.max() > 0 or d == 1


def test_rounding_to_fp16():
    """It rounds as torch does: every 997th float32, every fp16, the middles between them and their neighbours."""
    every = torch.arange(0, 2**32, 997).to(torch.int32).view(torch.float32)
    halves = torch.arange(65536).to(torch.int32).to(torch.int16).view(torch.float16).float()
    halves = halves[halves.isfinite()].sort().values
    middle = (halves[1:] + halves[:-1]) / 2
    near = [torch.nextafter(middle, torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    values = torch.cat([every[~every.isnan()], halves, middle, *near]).contiguous()
    got = torch.empty(len(values), dtype=torch.float16)
    _C.halves(values.data_ptr(), got.data_ptr(), len(values))
    assert torch.equal(got.view(torch.int16), values.half().view(torch.int16))
