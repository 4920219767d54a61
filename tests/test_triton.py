"""The Triton implementation from within: its bound, its keys, its counts, its chunks, its tuning; on a GPU also graphs and compilations."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch
from inputs import (
    BEYOND_DOUBLE_DOUBLE,
    DEVICES,
    assert_exact,
    assert_level_with_the_best,
    case,
    each_impl,
    hurting_pair,
    normal,
    oracle,
    seeded,
)

from pez_fast import TokenTable, info, nearest_token
from pez_fast._shared import halves, settle

if info(DEVICES[-1])["implementations"]["triton"] is not True:
    pytest.skip("Triton is not usable here", allow_module_level=True)

from pez_fast._triton import nearest as triton_nearest
from pez_fast._triton import tune
from pez_fast._triton.finish import _nearest_finish_kernel
from pez_fast._triton.scan import _nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel

DEVICE = DEVICES[-1]
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


class Scanned(NamedTuple):
    scores: torch.Tensor  # (N, T, 2)
    place: torch.Tensor  # (N, T, 2)
    present: torch.Tensor  # (N, T, 2) bool: whether it is a token at all
    eps: torch.Tensor  # (N,) the bound
    error: torch.Tensor  # (N,) of the query's rounding
    block_v: int

    def off(self, exact: torch.Tensor) -> torch.Tensor:
        """(N, T, 2): distance of the scores from the cosines exact (N, K)."""
        true = exact.gather(1, self.place.clamp(0, exact.shape[1] - 1).flatten(1)).view_as(self.scores)
        return (self.scores.double() - true).abs().masked_fill(~self.present, 0)


def scanned(x: torch.Tensor, table: TokenTable) -> Scanned:
    unit, residual = table.prepared("triton")
    n, d = x.shape
    query, error, _ = triton_nearest.queries(x, unit.shape[1])
    scan = tune.configuration(x.device, n, d, len(table.ids), lambda scan: None)
    keys = triton_nearest.scan_keys(query, unit, n, len(table.ids), scan)
    first = torch.arange(keys.shape[1], device=x.device)[None, :, None] * scan.block_v
    place = first + scan.block_v - 1 - (keys & (scan.block_v - 1))
    scores = (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(torch.float32)
    eps = residual + error[:n] * (1 + residual) + triton_nearest.scan_slack(d, scan.block_v)
    return Scanned(scores, place, keys != -(2**31), eps, error[:n], scan.block_v)


KINDS = ("normal", "positive", "equal elements", "one large", "cancelling", "mixed", "subnormal halves")


@pytest.mark.parametrize("d", [1, 3, 17, 128, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_scan_error(kind, d):
    """No scanned score leaves the bound, and the two kept of each tile are its best ones up to the bound."""
    g = seeded(f"{kind} {d}")
    x, weight = hurting_pair(kind, g, 24, 700, d)
    x, table = x.contiguous().to(DEVICE), TokenTable(weight.contiguous().to(DEVICE))
    found = scanned(x, table)
    exact = cosines(x, table)
    off = found.off(exact)
    assert (off <= found.eps[:, None, None]).all()
    assert off.max() > 0, "an input without any rounding tests nothing"
    for tile, part in enumerate(exact.split(found.block_v, dim=1)):
        best = part.topk(min(2, part.shape[1])).values
        assert (found.scores[:, tile, : best.shape[1]] >= best - found.eps[:, None]).all()


def cosines(x: torch.Tensor, table: TokenTable) -> torch.Tensor:
    return settle.unit_rows(x) @ settle.unit_rows(table.weight[table.ids]).T


def lost(rows: torch.Tensor) -> torch.Tensor:
    """What rounding to float16 takes from the unit rows."""
    unit = settle.unit_rows(rows)
    return unit - unit.half().double()


@pytest.mark.parametrize("d", [256, 1024])
def test_each_rounding_is_in_the_bound(d):
    """A query that points where a token was rounded is off by all of the residual, and the other way round by all of its own error."""
    some = normal(seeded("rounding"), 1, d).to(DEVICE)
    away = lost(some)
    table = TokenTable(some)
    found = scanned(away, table)
    assert 0.8 * table.prepared("triton")[1] < found.off(cosines(away, table)).max() <= found.eps[0]
    table = TokenTable(away)
    found = scanned(some, table)
    assert 0.8 * found.error[0] < found.off(cosines(some, table)).max() <= found.eps[0]


def test_keys_number_the_lowest_of_equal_tokens():
    """A tile of rows repeated, positive and negative scores: best and second best are the first two of the best row."""
    rows = settle.unit_rows(normal(seeded("keys"), 8, 64)).half()
    unit = rows.repeat_interleave(3, 0)
    unit = torch.cat([unit, unit.new_zeros(tune.TILE - len(unit), 64)]).to(DEVICE)
    query, _, state = triton_nearest.queries(torch.cat([rows, -rows]).to(DEVICE).float(), 64)
    scan = tune.configuration(query.device, 16, 64, 24, lambda scan: None)
    keys = triton_nearest.scan_keys(query, unit, 16, 24, scan)[:, 0]
    place = scan.block_v - 1 - (keys & (scan.block_v - 1))
    best = (torch.cat([rows, -rows]).float() @ rows.T.float()).argmax(1)
    assert state.tolist() == [0] * 16
    assert place.tolist() == [[3 * b, 3 * b + 1] for b in best.tolist()]
    assert (keys[:, 0] > keys[:, 1]).all()
    alone = triton_nearest.scan_keys(query, unit, 16, 1, scan)[:, 0]
    assert (alone[:, 1] == -(2**31)).all(), "what is behind the last token must never be a key"


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
    assert_level_with_the_best(x, weight, nearest_token(x.to(DEVICE), TokenTable(weight.to(DEVICE)), "triton")[0])


def test_far_below_one_is_told_apart():
    """The error of double-double is relative to the summands, not to one."""
    assert_exact(*case("far_below_one"), "triton", DEVICE, oracle("far_below_one"))


# Tuning.


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """As if on an H100, with a file of its own; yields the configurations that were timed."""
    timed: list[tune.Scan] = []
    monkeypatch.setattr(tune, "INTERPRETED", False)
    monkeypatch.setattr(tune, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(tune, "_device_name", lambda device: "a GPU")
    monkeypatch.setattr(tune, "_milliseconds", lambda run: run() or -len(timed))  # the last one wins
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PEZ_FAST_AUTOTUNE", raising=False)
    tune._stored.cache_clear()
    yield timed
    tune._stored.cache_clear()


def chosen(timed: list[tune.Scan], n: int = 4096) -> tune.Scan:
    return tune.configuration(torch.device("cpu"), n, 1024, 49408, timed.append)


def test_nothing_is_timed_unasked(tuned, tmp_path):
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0]
    assert tuned == [] and list(tmp_path.iterdir()) == []


def test_winner_is_kept(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    best = tune.candidates((9, 0), 4096)[-1]
    assert chosen(tuned) == best and len(tuned) == len(tune.candidates((9, 0), 4096))
    assert chosen(tuned) == chosen(tuned, 3000) == best and len(tuned) == len(tune.candidates((9, 0), 4096))
    chosen(tuned, 16)  # another kind of search
    assert len(tuned) > len(tune.candidates((9, 0), 4096))
    assert [path.name for path in (tmp_path / "pez_fast").iterdir()] == ["triton.json"]
    monkeypatch.delenv("PEZ_FAST_AUTOTUNE")
    tune._stored.cache_clear()
    tuned.clear()
    assert chosen(tuned) == best and tuned == []


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"a": 1}', '{"a": {"block_n": 1, "colour": 2}}'])
def test_unreadable_file_is_ignored(text, tuned, tmp_path):
    (tmp_path / "pez_fast").mkdir()
    (tmp_path / "pez_fast" / "triton.json").write_text(text)
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0]


def test_unknown_winner_is_ignored(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    chosen(tuned)
    path = tmp_path / "pez_fast" / "triton.json"
    stored = json.loads(path.read_text())
    for scan in stored.values():
        scan["block_v"] = 32
    path.write_text(json.dumps(stored))
    tune._stored.cache_clear()
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0]


def test_nothing_is_timed_under_capture(tuned, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0] and tuned == []


@pytest.mark.parametrize("n", [1, 16, 17, 64, 128, 129, 16384])
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_candidates_fit_the_chip(capability, n):
    choices = tune.candidates(capability, n)
    assert choices and len(set(choices)) == len(choices)
    for scan in choices:
        assert scan.shared_bytes <= tune.shared_limit(capability)
        assert scan.block_n >= n or n > tune.FEW
        assert 256 % scan.block_n == 256 % scan.block_v == 0 and tune.WIDTH % scan.block_k == 0
        assert not scan.descriptor or capability in [(9, 0), (10, 0)]


# On a GPU.


@on_a_gpu
def test_row_counts_share_one_compilation():
    table = TokenTable(normal(seeded("table"), 3000, 64).to(DEVICE))
    kernels = (_nearest_query_kernel, _nearest_scan_few_kernel, _nearest_scan_many_kernel, _nearest_finish_kernel)

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
    """Captured once, replayed on other rows: the same as when called."""
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


@each_impl
def test_positions_are_added(impl, device):
    if impl != "triton":
        pytest.skip("an argument of this implementation alone")
    from pez_fast._triton.splice import splice

    g = seeded("positions")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        template, hard, positions = normal(g, 3, 7, 10).to(dtype), normal(g, 2, 2, 10), normal(g, 7, 10)
        slots, owner = torch.tensor([4, 1]), torch.tensor([1, 0, 1])
        plain = splice(*(t.to(device) for t in (template, hard, slots, owner)))
        added = splice(*(t.to(device) for t in (template, hard, slots, owner, positions)))
        assert torch.equal(added, plain + positions.to(device, dtype))
