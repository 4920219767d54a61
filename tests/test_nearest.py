"""The nearest token: the ids of the oracle, whatever the input."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from inputs import (
    CASES,
    DTYPES,
    SMALL_CASES,
    Case,
    assert_exact,
    case,
    each_impl,
    integers,
    normal,
    oracle,
    poisoned,
    refused,
    seeded,
)
from tolerances import SIMILARITY

import pez_fast
from pez_fast import TokenTable, nearest_token, ops, reference
from pez_fast._torch import nearest as torch_nearest


@each_impl
@pytest.mark.parametrize("name", CASES)
def test_equals_oracle(name, impl, device):
    with poisoned():
        assert_exact(*case(name), impl, device, oracle(name))


def mixed_case(name: str, x_dtype: torch.dtype, table_dtype: torch.dtype, n: int = 24) -> Case:
    """Rows at random, repeated rows, parallel rows, and small integers with ties; queries of all these kinds."""
    g = seeded(name)
    some = normal(g, 30, 20).to(table_dtype)
    weight = torch.cat([some, some[:20], 2 * some[10:], integers(g, -1, 1, 40, 20).to(table_dtype)])
    x = torch.cat([normal(g, n // 2, 20), weight[::7].float(), integers(g, -1, 1, n // 2, 20).float()]).to(x_dtype)
    return Case(x, weight)


@each_impl
@pytest.mark.parametrize("table_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_dtypes(x_dtype, table_dtype, impl, device):
    assert_exact(*mixed_case("dtypes", x_dtype, table_dtype), impl, device)


@each_impl
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0, 4), (0,), (2, 1, 3)])
def test_leading_dimensions(leading, impl, device):
    g = seeded("leading")
    weight, x = normal(g, 60, 10), normal(g, *leading, 10)
    ids, cosines = reference.nearest_token(x.reshape(-1, 10), weight)
    found, similarity = nearest_token(x.to(device), TokenTable(weight.to(device)), impl)
    assert torch.equal(found.cpu(), ids.view(leading))
    torch.testing.assert_close(similarity.cpu().double(), cosines.view(leading), rtol=0, atol=SIMILARITY)


LAYOUTS = {
    "transposed": lambda t: t.T.contiguous().T,
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
    "every third column": lambda t: t.repeat_interleave(3, 1)[:, ::3],
    "a window": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 4))[1:-4, 3:-2],
    "one element behind": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@each_impl
@pytest.mark.parametrize("of", ["x", "weight"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, of, impl, device):
    given_case = mixed_case("layouts", torch.float32, torch.float32)._asdict()
    expected = reference.nearest_token(**given_case)
    view = LAYOUTS[layout](given_case[of].to(device))
    assert torch.equal(view.cpu(), given_case[of]) and (not view.is_contiguous() or view.storage_offset())
    table = TokenTable(view if of == "weight" else given_case["weight"].to(device))
    found, _ = nearest_token(view if of == "x" else given_case["x"].to(device), table, impl)
    assert found.tolist() == expected[0].tolist()


@each_impl
def test_expanded_queries(impl, device):
    weight, x = normal(seeded("expanded"), 60, 10), normal(seeded("query"), 1, 10)
    found, _ = nearest_token(x.to(device).expand(5, 10), TokenTable(weight.to(device)), impl)
    assert found.tolist() == reference.nearest_token(x, weight)[0].tolist() * 5


@each_impl
def test_more_rows_and_tokens_than_a_block(impl, device):
    g = seeded("blocks")
    n, v = torch_nearest.ROWS + 77, torch_nearest.TOKENS + 1003
    weight = normal(g, v, 6).mul(4).round()  # thousands of ties, also across the blocks
    assert_exact(normal(g, n, 6), weight, (), impl, device)


@each_impl
def test_each_row_is_found_as_if_alone(impl, device):
    x, weight, _ = mixed_case("alone", torch.float32, torch.float16)
    table = TokenTable(weight.to(device))
    together, _ = nearest_token(x.to(device), table, impl)
    assert together.tolist() == [int(nearest_token(row.to(device), table, impl)[0]) for row in x]


@each_impl
def test_same_bits_every_time(impl, device):
    x, weight, banned = case("tightly_clustered")
    table = TokenTable(weight.to(device), banned)
    runs = [nearest_token(x.to(device), table, impl) for _ in range(3)]
    for ids, similarity in runs[1:]:
        assert torch.equal(ids, runs[0][0]) and torch.equal(similarity, runs[0][1])


# What the torch implementation does in blocks, in blocks of a few.


@pytest.mark.parametrize("name", SMALL_CASES)
def test_small_blocks(name, monkeypatch):
    """Every block ragged, and near ties settled again and again before the scan is over."""
    for limit, size in (("ROWS", 7), ("TOKENS", 13), ("CANDIDATES", 5), ("ELEMENTS", 64)):
        monkeypatch.setattr(torch_nearest, limit, size)
    if len(case(name).weight) > 500:  # hundreds of blocks take seconds and show nothing new
        monkeypatch.setattr(torch_nearest, "TOKENS", 131)
        monkeypatch.setattr(torch_nearest, "ELEMENTS", 1 << 14)
    assert_exact(*case(name), "torch", "cpu", oracle(name))


@pytest.fixture
def settled(monkeypatch) -> list[int]:
    """How many candidates were settled at each call."""
    counts: list[int] = []
    settle = torch_nearest._settle

    def counting(q, weight, rows, tokens):
        counts.append(len(rows))
        return settle(q, weight, rows, tokens)

    monkeypatch.setattr(torch_nearest, "_settle", counting)
    return counts


def test_candidates_do_overflow(settled, monkeypatch):
    """That `test_small_blocks` goes where it is meant to."""
    x, weight, _ = case("parallel")
    nearest_token(x, TokenTable(weight), "torch")
    assert len(settled) == 1
    monkeypatch.setattr(torch_nearest, "TOKENS", 13)
    monkeypatch.setattr(torch_nearest, "CANDIDATES", 5)
    nearest_token(x, TokenTable(weight), "torch")
    assert len(settled) > 3 and max(settled) > 5


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_rows_without_direction_are_not_settled(value, settled):
    """All tokens are equally near to such a row: settling them would take a thousand times as long as the scan."""
    x, weight = normal(seeded("no direction"), 8, 10), normal(seeded("table"), 500, 10)
    x[::2] = value
    table = TokenTable(weight)
    found, _ = torch_nearest.nearest(x, table.weight, table.ids, [table.unit])
    assert found[::2].tolist() == [0 if value == 0 else -1] * 4
    assert sum(settled) < len(weight)


# The bound on which the scan rests.


def scanned(x: torch.Tensor, table: TokenTable) -> torch.Tensor:
    q = torch_nearest.power_scaled(x)
    with torch_nearest._full_precision():
        return (q / q.norm(dim=-1, keepdim=True)).float() @ table.unit.T


@pytest.mark.parametrize("d", [1, 2, 3, 17, 128, 768, 4096])
@pytest.mark.parametrize("kind", ["normal", "positive", "equal elements", "one large", "cancelling", "mixed"])
def test_scan_error(kind, d):
    g = seeded(f"{kind} {d}")
    x, weight = normal(g, 40, d), normal(g, 60, d)
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
    table = TokenTable(weight.contiguous())
    unit = [t.double() / t.double().norm(dim=-1, keepdim=True) for t in (x, table.weight[table.ids])]
    error = (scanned(x, table).double() - unit[0] @ unit[1].T).abs().max()
    assert error <= torch_nearest.scan_error(d)
    assert error > 0 or d == 1, "an input without any rounding tests nothing"




# Switches of torch that make its products less precise, or its defaults others.


def product_precision() -> tuple[str, str]:
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.fixture
def medium_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    medium = product_precision()
    assert medium == ("bf16", "tf32")
    yield
    after = product_precision()
    torch.set_float32_matmul_precision(before)
    assert after == medium, "a search must leave torch's settings as they were"


LESS_PRECISE = ["raggeder", "clustered", "tightly_clustered", "anisotropic", "last_bit"]


@each_impl
@pytest.mark.parametrize("name", LESS_PRECISE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, name, impl, device):
    with torch.autocast(device, dtype):
        assert_exact(*case(name), impl, device, oracle(name))


@each_impl
@pytest.mark.parametrize("name", LESS_PRECISE)
def test_under_medium_precision(name, impl, device, medium_precision):
    assert_exact(*case(name), impl, device, oracle(name))
    with torch.autocast(device, torch.bfloat16):
        assert_exact(*case(name), impl, device, oracle(name))


@pytest.mark.parametrize("fails", [False, True])
def test_the_scan_is_made_in_full_precision(fails, medium_precision, monkeypatch):
    """Not every CPU makes use of the permission to be less precise, so the settings themselves are looked at."""
    scan, seen = torch_nearest._scan, []

    def looking(q, *rest):
        seen.append((*product_precision(), torch.is_autocast_enabled(q.device.type)))
        if fails:
            raise KeyboardInterrupt
        return scan(q, *rest)

    monkeypatch.setattr(torch_nearest, "_scan", looking)
    table = TokenTable(torch.eye(3))
    with torch.autocast("cpu", torch.bfloat16), contextlib.suppress(KeyboardInterrupt):
        nearest_token(torch.ones(3), table, "torch")
    assert seen == [("ieee", "ieee", False)]


@each_impl
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_under_another_default_dtype(dtype, impl, device):
    expected = {name: oracle(name) for name in ("mixed_norms", "mixed_norms_float64", "parallel")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for name, answer in expected.items():
            assert_exact(*case(name), impl, device, answer)
    finally:
        torch.set_default_dtype(before)


@each_impl
def test_modes(impl, device):
    """In inference mode, without gradients, and with a query that wants one."""
    x, weight, _ = case("round")
    ids = oracle("round")[0].tolist()
    table = TokenTable(weight.to(device))
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            found, similarity = nearest_token(x.clone().to(device).requires_grad_(), table, impl)
            assert found.tolist() == ids and not similarity.requires_grad


# Shapes, dtypes and values drawn by hypothesis: small integers, so that most of the tables hold exact ties.


@st.composite
def drawn(draw) -> Case:
    n, v, d = draw(st.integers(0, 4)), draw(st.integers(1, 10)), draw(st.integers(1, 5))
    values = st.integers(-3, 3)
    x, weight = (torch.from_numpy(draw(arrays.arrays("int64", (rows, d), elements=values))) for rows in (n, v))
    scale = draw(st.sampled_from([1.0, 0.1, 1e-3, 77.0]))
    banned = draw(st.sets(st.integers(0, v - 1), max_size=v - 1))
    return Case((x * scale).to(draw(st.sampled_from(DTYPES))), weight.to(draw(st.sampled_from(DTYPES))), tuple(banned))


@each_impl
@given(drawn())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_ties_by_hypothesis(impl, device, drawn_case):
    assert_exact(*drawn_case, impl, device)


# What is not finite, and what does not fit.


@each_impl
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 4])
def test_not_finite(row, value, impl, device):
    g = seeded("finite")
    x, weight = normal(g, 5, 8), normal(g, 20, 8)
    expected = reference.nearest_token(x, weight)[0]
    x[row, 3] = value
    table = TokenTable(weight.to(device))
    if device == "cpu":
        with refused(ValueError, f"x must be finite; row {row} is not"):
            nearest_token(x, table, impl)
    else:
        found, similarity = nearest_token(x.to(device), table, impl)
        expected[row] = -1
        assert found.tolist() == expected.tolist()
        assert similarity.isnan().tolist() == (expected == -1).tolist()


BAD = {
    "no tensor": ([1.0, 2.0, 3.0, 4.0], {}, TypeError, "x must be a floating-point tensor; got list"),
    "integers": (torch.ones(2, 4, dtype=torch.int64), {}, TypeError, r"x must be .*; got torch.int64 tensor"),
    "complex": (torch.ones(2, 4, dtype=torch.complex64), {}, TypeError, r"x must be .*; got torch.complex64 tensor"),
    "width": (torch.ones(2, 5), {}, ValueError, r"x must be \(…, 4\) to match the table; got \(2, 5\)"),
    "a number": (torch.tensor(1.0), {}, ValueError, r"x must be \(…, 4\) to match the table; got \(\)"),
    "device": (torch.ones(2, 4, device="meta"), {}, ValueError, "x must be on cpu as the table is; got meta"),
    "table": (torch.ones(2, 4), {"table": torch.ones(3, 4)}, TypeError, "table must be a TokenTable; got torch.float32 tensor"),
    "no table": (torch.ones(2, 4), {"table": None}, TypeError, "table must be a TokenTable; got NoneType"),
    "impl": (torch.ones(2, 4), {"impl": "numpy"}, ValueError, "impl must be one of auto, torch, .*; got 'numpy'"),
    "no impl": (torch.ones(2, 4), {"impl": None}, ValueError, "impl must be one of auto, torch, .*; got None"),
}


@pytest.mark.parametrize("function", [pez_fast.nearest_token, pez_fast.project])
@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad, function):
    x, changed, kind, match = BAD[bad]
    with refused(kind, match):
        function(**{"x": x, "table": TokenTable(torch.eye(4)), **changed})


# The operator under torch's own examination, and compiled.


@each_impl
@pytest.mark.parametrize("name", ["one_row", "no_rows", "zero_rows", "banned_twins", "huge_bfloat16", "mixed_norms_float64"])
def test_operator(name, impl, device):
    x, weight, banned = case(name)
    table = TokenTable(weight.to(device), banned)
    torch.library.opcheck(ops.nearest, (x.to(device), table.weight, table.ids, [table.unit], impl))


@each_impl
def test_compiled(impl, device):
    torch._dynamo.reset()
    table = TokenTable(normal(seeded("compiled"), 300, 12).to(device))
    compiled = torch.compile(lambda x: nearest_token(x * 2, table, impl), fullgraph=True, backend="aot_eager")
    for n in (3, 5, 8):  # the second shape makes it dynamic
        x = normal(seeded(f"{n}"), n, 2, 12).to(device)
        for got, want in zip(compiled(x), nearest_token(x * 2, table, impl), strict=True):
            assert torch.equal(got, want)
