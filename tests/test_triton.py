"""The Triton implementation from within: bound, keys, tiles, counts; on a GPU also graphs and compilations."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from cases import BEYOND_DOUBLE_DOUBLE, case, oracle
from inputs import DEVICES, assert_exact, assert_tied_with_the_best, hurting_pair, normal, seeded
from tolerances import SIMILARITY

from pez_fast import TokenTable, info, nearest_token, reference
from pez_fast._shared import halves, resolve_ties

if info(DEVICES[-1])["implementations"]["triton"] is not True:
    pytest.skip("Triton is not usable here", allow_module_level=True)

from pez_fast._triton import nearest as triton_nearest
from pez_fast._triton import tune
from pez_fast._triton.decide import _nearest_decide_kernel
from pez_fast._triton.scan import _nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel

DEVICE = DEVICES[-1]
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


class Scanned(NamedTuple):
    scores: torch.Tensor  # (N, T, 2)
    group: torch.Tensor  # (N, T, 2)
    eps: torch.Tensor  # (N,) the bound
    error: torch.Tensor  # (N,) of the query's rounding
    block_v: int
    group_size: int

    def off(self, exact: torch.Tensor) -> torch.Tensor:
        """(N, T, 2): distance of the scores from the best cosine of the key's tokens; exact (N, K)."""
        groups = self.block_v // self.group_size
        member = torch.arange(self.group_size, device=exact.device) * groups
        token = (
            torch.arange(self.group.shape[1], device=exact.device)[:, None, None] * self.block_v
            + self.group[..., None]
            + member
        )
        token = token.clamp(max=exact.shape[1] - 1)  # the others are copies of the last token
        return (self.scores.double() - exact.gather(1, token.flatten(1)).view(token.shape).amax(-1)).abs()


def scanned(x: torch.Tensor, table: TokenTable) -> Scanned:
    unit, residual, _ = table.prepared("triton")
    n, d = x.shape
    query, error, _, _ = triton_nearest.queries(x, unit.shape[1])
    scan = tune.configuration(x.device, n, d, len(table.ids), lambda scan: None)
    scores = two_scores(triton_nearest.scan_keys(query, unit, n, len(table.ids), scan))
    groups = scan.block_v // tune.group_size(n)
    slack = halves.scan_slack(unit.shape[1], tune.capability(x.device), groups)
    eps = residual + error[:n] * (1 + residual) + slack
    return Scanned(scores, scores.view(torch.int32) & (groups - 1), eps, error[:n], scan.block_v, tune.group_size(n))


def two_scores(keys: torch.Tensor) -> torch.Tensor:
    """keys (N, T) -> the scores (N, T, 2) float32, the better first."""
    return keys.view(torch.float32).view(*keys.shape, 2)


KINDS = ("normal", "positive", "equal elements", "one large", "cancelling", "mixed", "subnormal halves")


@pytest.mark.parametrize(("n", "d"), [(24, 1), (24, 3), (24, 17), (24, 128), (24, 1024), (130, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_scan_error(kind, n, d):
    """No scanned score leaves the bound, and the two scores kept of each tile are its best ones up to the bound."""
    g = seeded(f"{kind} {d}")
    x, weight = hurting_pair(kind, g, n, 700, d)
    x, table = x.contiguous().to(DEVICE), TokenTable(weight.contiguous().to(DEVICE))
    found = scanned(x, table)
    exact = cosines(x, table)
    off = found.off(exact)
    assert (off <= found.eps[:, None, None]).all()
    assert off.max() > 0, "an input without any rounding tests nothing"
    last = exact[:, -1:].expand(-1, -exact.shape[1] % found.block_v)
    best = (
        torch.cat([exact, last], 1)
        .view(n, -1, found.group_size, found.block_v // found.group_size)
        .amax(2)
        .topk(2)
        .values
    )
    assert (found.scores >= best - found.eps[:, None, None]).all()


def cosines(x: torch.Tensor, table: TokenTable) -> torch.Tensor:
    return resolve_ties.unit_rows(x) @ resolve_ties.unit_rows(table.weight[table.ids]).T


def lost(rows: torch.Tensor) -> torch.Tensor:
    """What rounding to float16 takes from the unit rows."""
    unit = resolve_ties.unit_rows(rows)
    return unit - unit.half().double()


@pytest.mark.parametrize("d", [256, 1024])
def test_each_rounding_is_in_the_bound(d):
    """Both roundings matter: a query along the residual of a token, and a token along the residual of a query."""
    some = normal(seeded("rounding"), 1, d).to(DEVICE)
    away = lost(some)
    table = TokenTable(some)
    found = scanned(away, table)
    assert 0.8 * table.prepared("triton")[1] < found.off(cosines(away, table)).max() <= found.eps[0]
    table = TokenTable(away)
    found = scanned(some, table)
    assert 0.8 * found.error[0] < found.off(cosines(some, table)).max() <= found.eps[0]


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("n", [8, 130])
def test_keys_number_the_two_best_groups(n, sign):
    """Scores of either sign; the low bits do not decide which groups are found."""
    g = seeded("keys")
    x, unit = normal(g, n, 64), resolve_ties.unit_rows(normal(g, tune.TILE, 64)).half()
    x, unit = (x, unit) if sign > 0 else (-x.abs(), unit.abs())
    query, _, _, kind = triton_nearest.queries(x.to(DEVICE), 64)
    scan = tune.configuration(query.device, n, 64, tune.TILE, lambda scan: None)
    scores = two_scores(triton_nearest.scan_keys(query, unit.to(DEVICE), n, tune.TILE, scan))
    groups = scan.block_v // tune.group_size(n)
    exact = (query[:n].cpu().double() @ unit.T.double()).view(n, -1, tune.group_size(n), groups).amax(2)
    best = exact.topk(2)
    clear = best.values[..., 0] - best.values[..., 1] > 2 * groups * 2.0**-23
    found = scores.cpu().view(torch.int32) & (groups - 1)
    assert kind[:n].tolist() == [0] * n and clear.float().mean() > 0.9
    assert (exact.sign() == sign).all() or sign > 0
    assert torch.equal(found[..., 0][clear], best.indices[..., 0][clear])
    assert (found[..., 0] != found[..., 1]).all() and (scores[..., 0] > scores[..., 1]).all()


def counted(name: str) -> list[int]:
    x, weight, banned = case(name)
    table = TokenTable(weight.to(DEVICE), banned)
    counts = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    found, _ = triton_nearest.nearest(x.to(DEVICE), table.weight, table.ids, table.prepared("triton"), counts)
    assert found.tolist() == oracle(name)[0].tolist()
    return counts.tolist()


def test_counts():
    decided, compared, whole = counted("round")
    assert decided > 200 and decided + compared + whole == 256
    assert counted("clustered") == [0, 0, 30]
    assert sum(counted("zero_rows")) == 10, "rows without a direction are not counted"
    assert counted("large_vocabulary")[1] > 0


# Whole tiles.


@pytest.fixture(params=["few", "many"])
def either_scan(request, monkeypatch):
    """One token to a key, or several, for every number of rows."""
    if request.param == "many":
        monkeypatch.setattr(tune, "FEW", 0)


def near_twins(near: int, noise: float, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Three queries, and a table of 700 with `near` near twins of each; if these fill it, the queries are alike."""
    g = seeded(f"overflowed {near}")
    x, weight = normal(g, 3, 40, dtype=torch.float64), normal(g, 700, 40, dtype=torch.float64)
    if near >= 250:
        x = x[:1].expand(3, -1) + noise * normal(g, 3, 40, dtype=torch.float64)
    for row, first in zip(x, (0, 250, 500), strict=True):
        weight[first : first + near] = row + noise * normal(
            g, len(weight[first : first + near]), 40, dtype=torch.float64
        )
        weight[first + 3] = row
    return x.to(dtype), weight.to(dtype)


def searched(
    x: torch.Tensor, table: TokenTable, prepared: list[torch.Tensor]
) -> tuple[list[int], torch.Tensor, list[int]]:
    counts = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    found, similarity = triton_nearest.nearest(x, table.weight, table.ids, prepared, counts)
    return found.tolist(), similarity.cpu().double(), counts.tolist()


STRIDED = {
    "contiguous": lambda t: t,
    "strided": lambda t: t.repeat_interleave(3, 1)[:, ::3],
}


@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("near", [2, 9, 250], ids=["two reach", "some reach", "all reach"])
def test_whole_tiles(near, dtype, layout, either_scan):
    """The tokens of a tile that reach the limit are compared exactly, two of them or all."""
    x, weight = near_twins(near, 1e-4 if dtype == torch.float16 else 1e-7, dtype)
    ids, cosines = reference.nearest_token(x, weight)
    table = TokenTable(STRIDED[layout](weight.to(DEVICE)))
    found, similarity, counts = searched(STRIDED[layout](x.to(DEVICE)), table, table.prepared("triton"))
    assert found == ids.tolist() and counts == [0, 0, 3]
    torch.testing.assert_close(similarity, cosines, rtol=0, atol=SIMILARITY)


@pytest.mark.parametrize("near", [0, 2, 9])
def test_only_what_reaches_the_limit_is_compared(near, either_scan):
    """Wrong norms would make all other tokens win, if the decision looked at them."""
    x, weight = near_twins(near, 1e-7)
    table = TokenTable(weight.to(DEVICE))
    unit, residual, norm = table.prepared("triton")
    far = cosines(x.to(DEVICE), table).amax(0) < 0.99
    assert far.sum() >= 700 - 3 * (near + 1)
    found, similarity, counts = searched(x.to(DEVICE), table, [unit, residual, torch.where(far, norm * 1e-9, norm)])
    assert found == reference.nearest_token(x, weight)[0].tolist()
    assert (similarity <= 1 + 1e-6).all() and counts == ([3, 0, 0] if near == 0 else [0, 0, 3])


@pytest.mark.parametrize("tokens", [1, 2, 511, 513, 700])
def test_the_last_token_and_its_copies(tokens, either_scan):
    """The padding repeats the last token: the search finds that token, never a copy."""
    g = seeded("last")
    weight = normal(g, tokens, 40)
    x = torch.cat([weight[-1:] * 3, weight[-1:] + 1e-3 * normal(g, 1, 40), -weight[-1:]])
    table = TokenTable(weight.to(DEVICE))
    unit, _, norm = table.prepared("triton")
    assert (
        len(unit) % tune.TILE == 0
        and len(norm) == tokens
        and torch.equal(unit[tokens:], unit[tokens - 1 : tokens].expand(len(unit) - tokens, -1))
    )
    expected, cosine = reference.nearest_token(x, weight)
    found, similarity, counts = searched(x.to(DEVICE), table, table.prepared("triton"))
    assert found == expected.tolist() and found[:2] == [tokens - 1] * 2 and sum(counts) == 3
    torch.testing.assert_close(similarity, cosine, rtol=0, atol=SIMILARITY)


@pytest.mark.parametrize("name", ["one_token", "zero_rows", "tightly_clustered", "mixed_norms_float64"])
def test_chunks_of_rows(name, monkeypatch):
    monkeypatch.setattr(triton_nearest, "ROWS", 7)
    assert_exact(*case(name), "triton", DEVICE, oracle(name))


def test_table_prepared_in_chunks(monkeypatch):
    x, weight, _ = case("raggeder")
    whole = TokenTable(weight.to(DEVICE)).prepared("triton")
    monkeypatch.setattr(halves, "ELEMENTS", 1000)
    assert all(torch.equal(a, b) for a, b in zip(whole, TokenTable(weight.to(DEVICE)).prepared("triton"), strict=True))


@pytest.mark.parametrize("name", BEYOND_DOUBLE_DOUBLE)
def test_beyond_double_double(name):
    x, weight, _ = case(name)
    assert_tied_with_the_best(x, weight, nearest_token(x.to(DEVICE), TokenTable(weight.to(DEVICE)), "triton")[0])


def test_far_below_one_is_told_apart():
    """The error of double-double is relative to the summands, not to one."""
    assert_exact(*case("far_below_one"), "triton", DEVICE, oracle("far_below_one"))


# On a GPU.


@on_a_gpu
def test_row_counts_share_one_compilation():
    table = TokenTable(normal(seeded("table"), 3000, 64).to(DEVICE))
    kernels = (_nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel, _nearest_decide_kernel)

    def compilations() -> list[int]:
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    x = normal(seeded("rows"), 2000, 64).to(DEVICE)
    for n in (9, 300):
        nearest_token(x[:n], table, "triton")
    before = compilations()
    for n in (1, 2, 16, 129, 256, 1000, 2000):
        nearest_token(x[:n], table, "triton")
    assert compilations() == before


@on_a_gpu
@pytest.mark.parametrize("n", [5, 200])
def test_graph(n):
    """A graph captured once and replayed on other rows gives the same results as calls."""
    table = TokenTable(normal(seeded("table"), 3000, 64).to(DEVICE))
    x = normal(seeded("rows"), n, 64).to(DEVICE)
    nearest_token(x, table, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = nearest_token(x, table, "triton")
    for seed in ("one", "two"):
        x.copy_(normal(seeded(seed), n, 64))
        graph.replay()
        for got, want in zip(out, nearest_token(x, table, "triton"), strict=True):
            assert torch.equal(got, want)
