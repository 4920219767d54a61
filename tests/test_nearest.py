"""The nearest token: the ids of the oracle, whatever the input."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from cases import BEYOND_DOUBLE_DOUBLE, CASES, Case, case, oracle
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from inputs import DTYPES, assert_exact, each_impl, integers, normal, poisoned, refused, seeded
from tolerances import SIMILARITY

import pez_fast
from pez_fast import TokenTable, nearest_token, ops, reference
from pez_fast._shared import resolve_ties


@each_impl
@pytest.mark.parametrize("name", CASES)
def test_equals_oracle(name, impl, device):
    if impl in ("triton", "cuda") and name in BEYOND_DOUBLE_DOUBLE:
        pytest.skip("closer than 2^-90 counts as a tie on a GPU: test_triton.py and test_cuda.py hold it to that")
    with poisoned():
        assert_exact(*case(name), impl, device, oracle(name))


def mixed_case(name: str, x_dtype: torch.dtype, table_dtype: torch.dtype, n: int = 24) -> Case:
    """Random rows, repeated rows, parallel rows, and small integers with ties; queries of all these kinds."""
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
    n, v = 1024 + 77, 4096 + 1003
    weight = normal(g, v, 6).mul(4).round()  # thousands of ties, also across the blocks
    assert_exact(normal(g, n, 6), weight, (), impl, device)


@each_impl
def test_seventy_thousand_rows(impl, device):
    """More rows than any implementation takes at once. The interpreter would need an hour for them."""
    g = seeded("many")
    n = 300 if (impl, device) == ("triton", "cpu") else 70_000
    x, weight = normal(g, n, 9), normal(g, 307, 9)
    x[::1000] = weight[integers(g, 0, 306, len(x[::1000]))]
    found, similarity = nearest_token(x.to(device), TokenTable(weight.to(device)), impl)
    exact = resolve_ties.exhaustive(x, weight, torch.arange(307))
    assert torch.equal(found.cpu(), exact)
    torch.testing.assert_close(
        similarity.cpu().double(), resolve_ties.float64_cosine(x, weight[exact]), rtol=0, atol=SIMILARITY
    )
    sample = torch.randperm(n, generator=g)[:100]
    assert torch.equal(exact[sample], reference.nearest_token(x[sample], weight)[0])


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


# Switches of torch that make its products less precise, or change its defaults.


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
    """In inference mode, without gradients, and with a query that requires one."""
    x, weight, _ = case("round")
    ids = oracle("round")[0].tolist()
    table = TokenTable(weight.to(device))
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            found, similarity = nearest_token(x.clone().to(device).requires_grad_(), table, impl)
            assert found.tolist() == ids and not similarity.requires_grad


# Hypothesis draws shapes, dtypes and values: small integers, so that most tables hold exact ties.


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


# Values that are not finite, and arguments that do not fit.


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
    "table": (
        torch.ones(2, 4),
        {"table": torch.ones(3, 4)},
        TypeError,
        "table must be a TokenTable; got torch.float32 tensor",
    ),
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


# The operator in torch's opcheck, and compiled.


@each_impl
@pytest.mark.parametrize(
    "name", ["one_row", "no_rows", "zero_rows", "banned_twins", "huge_bfloat16", "mixed_norms_float64"]
)
def test_operator(name, impl, device):
    x, weight, banned = case(name)
    table = TokenTable(weight.to(device), banned)
    torch.library.opcheck(ops.nearest, (x.to(device), table.weight, table.ids, table.prepared(impl), impl))


@each_impl
def test_compiled(impl, device):
    torch._dynamo.reset()
    table = TokenTable(normal(seeded("compiled"), 300, 12).to(device))
    compiled = torch.compile(lambda x: nearest_token(x * 2, table, impl), fullgraph=True, backend="aot_eager")
    for n in (3, 5, 8):  # the second shape makes it dynamic
        x = normal(seeded(f"{n}"), n, 2, 12).to(device)
        for got, want in zip(compiled(x), nearest_token(x * 2, table, impl), strict=True):
            assert torch.equal(got, want)
