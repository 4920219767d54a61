"""The token table: which rows are searched, how they are prepared, and what is refused."""

from __future__ import annotations

import pytest
import torch
from cases import case, oracle
from inputs import DTYPES, assert_exact, each_impl, normal, refused, seeded
from tolerances import UNIT
from torch import nn

import pez_fast.table
from pez_fast import TokenTable, nearest_token, project
from pez_fast._torch import nearest as torch_nearest

BANNED = {
    "nothing": (None, []),
    "no ids": ([], []),
    "a list": ([3, 5], [3, 5]),
    "a tuple, twice": ((5, 3, 5), [3, 5]),
    "a set": ({3, 5}, [3, 5]),
    "a range": (range(2, 4), [2, 3]),
    "a generator": ((v for v in (3, 5)), [3, 5]),
    "int64": (torch.tensor([3, 5]), [3, 5]),
    "int32": (torch.tensor([3, 5], dtype=torch.int32), [3, 5]),
    "uint8": (torch.tensor([3, 5], dtype=torch.uint8), [3, 5]),
    "no ids in a tensor": (torch.tensor([], dtype=torch.int64), []),
    "a mask": (torch.tensor([False, True, False, False, True, False]), [1, 4]),
    "a list of bools": ([False, True, False, False, True, False], [1, 4]),
}


@pytest.mark.parametrize("form", BANNED)
def test_banned(form):
    banned, ids = BANNED[form]
    table = TokenTable(normal(seeded("banned"), 6, 3), banned)
    assert table.allowed.tolist() == [v not in ids for v in range(6)]
    assert table.ids.tolist() == [v for v in range(6) if v not in ids]
    found, _ = nearest_token(table.weight, table)
    assert not set(found.tolist()) & set(ids)


def test_a_mask_is_copied():
    mask = torch.tensor([False, True, False])
    table = TokenTable(torch.eye(3), mask)
    mask.fill_(True)
    table.refresh()
    assert table.ids.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_attributes(dtype):
    weight = normal(seeded("attributes"), 9, 5).to(dtype)
    table = TokenTable(weight, [4])
    assert len(table) == 9 and table.dim == 5 and table.dtype == dtype and table.device == weight.device
    assert table.weight.data_ptr() == weight.data_ptr(), "the weight is referred to, not copied"
    (unit,) = table.prepared("torch")
    assert unit.dtype == torch.float32 and unit.shape == (8, 5)
    name = str(dtype).removeprefix("torch.")
    assert repr(table) == f"TokenTable(9 tokens of 5, {name} on cpu, 8 distinct and allowed)"


@each_impl
def test_an_embedding(impl, device):
    embedding = nn.Embedding(20, 6, padding_idx=0).to(device)
    table = TokenTable(embedding)
    assert not table.weight.requires_grad and embedding.weight.requires_grad
    x = normal(seeded("embedding"), 7, 6).to(device)
    assert torch.equal(
        nearest_token(x, table, impl)[0], nearest_token(x, TokenTable(embedding.weight.detach()), impl)[0]
    )


@pytest.mark.parametrize(
    "name", ["round", "huge", "subnormal", "mixed_norms", "mixed_columns", "huge_float64", "tiny_float64", "zero_rows"]
)
def test_unit_rows(name):
    """The rows divided by their norm, within rounding, also if the squares would leave the range of the dtype."""
    weight = case(name).weight
    table = TokenTable(weight)
    rows = weight[table.ids].double()
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    norm = rows.norm(dim=-1, keepdim=True)
    exact = rows / norm.where(norm > 0, torch.ones(()))
    (unit,) = table.prepared("torch")
    assert ((unit.double() - exact).abs() <= UNIT * exact.abs() + 2.0**-150).all()
    assert not unit[norm[:, 0] == 0].any()


def test_repeated_rows_keep_the_lowest_allowed_id():
    rows = normal(seeded("twins"), 4, 3)
    weight = rows[[0, 1, 0, 2, 1, 3, 0]]
    assert TokenTable(weight).ids.tolist() == [0, 1, 3, 5]
    assert TokenTable(weight, [0, 1]).ids.tolist() == [2, 3, 4, 5]


def test_minus_zero_equals_zero():
    weight = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, -0.0], [1.0, 0.0], [-0.0, 0.0], [0.0, -0.0]])
    assert TokenTable(weight).ids.tolist() == [0, 2, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_last_bit_is_no_repetition(dtype):
    """A difference in the last bit counts, also far behind the columns that are compared first."""
    row = normal(seeded("bit"), 100).to(dtype)
    weight = row.repeat(101, 1)
    bits = weight.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
    bits[torch.arange(100), torch.arange(100)] ^= 1
    assert TokenTable(weight).ids.tolist() == list(range(101))
    assert TokenTable(weight.repeat(2, 1)).ids.tolist() == list(range(101))


@pytest.mark.parametrize("name", ["duplicates", "last_bit", "banned_twins", "small_integers", "zero_table"])
def test_equal_hashes_are_no_proof(name, monkeypatch):
    """If all hashes collide, different rows are still found, and of equal rows the lowest."""
    monkeypatch.setattr(pez_fast.table, "_row_hashes", lambda rows: torch.zeros(len(rows), dtype=torch.int64))
    assert_exact(*case(name), "torch", "cpu", oracle(name))


@each_impl
def test_prepared_in_chunks(impl, device, monkeypatch):
    monkeypatch.setattr(pez_fast.table, "_CHUNK", 50)
    monkeypatch.setattr(torch_nearest, "ELEMENTS", 50)
    for name in ("duplicates", "last_bit", "banned_twins"):
        assert_exact(*case(name), impl, device, oracle(name))


@each_impl
def test_refresh(impl, device):
    g = seeded("refresh")
    weight, other = normal(g, 30, 6), normal(g, 30, 6)
    other[5] = other[2]
    x = normal(g, 50, 6)
    shared = weight.to(device, copy=True)
    table = TokenTable(shared, [0, 7])
    shared.copy_(other)
    table.refresh()
    fresh = TokenTable(other.to(device), [0, 7])
    assert torch.equal(table.prepared("torch")[0], fresh.prepared("torch")[0]) and torch.equal(table.ids, fresh.ids)
    assert torch.equal(nearest_token(x.to(device), table, impl)[0], nearest_token(x.to(device), fresh, impl)[0])


CHANGES = {
    "one element": lambda w: w.view(-1)[17].add_(1e-3),
    "behind autograd": lambda w: w.data.mul_(1.5),
    "through numpy": lambda w: w.cpu().numpy().__setitem__((3, 2), 9.0),
    "two rows change places": lambda w: w.copy_(w[[1, 0, *range(2, len(w))]]),
    "one row takes another's place": lambda w: w[4].copy_(w[11]),
    "a sign": lambda w: w[5, 1].neg_(),
}


@pytest.mark.parametrize("search", [nearest_token, project])
@pytest.mark.parametrize("change", CHANGES)
def test_debug_notices_a_change(change, search, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_DEBUG", "1")
    weight = normal(seeded("debug"), 20, 6)
    table = TokenTable(weight)
    search(torch.ones(6), table)
    CHANGES[change](weight)
    with refused(RuntimeError, "weights of this TokenTable were changed after it was made; call refresh()"):
        search(torch.ones(6), table)
    table.refresh()
    search(torch.ones(6), table)


@pytest.mark.parametrize("value", ["0", "", None])
def test_without_debug_nothing_is_compared(value, monkeypatch):
    monkeypatch.delenv("PEZ_FAST_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("PEZ_FAST_DEBUG", value)
    weight = normal(seeded("debug"), 20, 6)
    table = TokenTable(weight)
    weight.mul_(2)
    nearest_token(torch.ones(6), table)


def test_fingerprint_of_the_same_weights_is_the_same():
    weight = normal(seeded("fingerprint"), 20, 6)
    assert TokenTable(weight).fingerprint() == TokenTable(weight.clone()).fingerprint()


NOT_FINITE = torch.eye(4).index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(torch.nan))
BAD = {
    "list": ([[1.0]], None, TypeError, "weight must be a .* tensor or an nn.Embedding; got list"),
    "integers": (torch.ones(3, 3).long(), None, TypeError, "weight must be a .*; got torch.int64"),
    "complex": (torch.ones(3, 3) + 0j, None, TypeError, "weight must be a .*; got torch.complex64"),
    "float8": (
        torch.ones(3, 3).to(torch.float8_e4m3fn),
        None,
        TypeError,
        "weight must be a .*; got torch.float8_e4m3fn",
    ),
    "linear": (nn.Linear(3, 3), None, TypeError, "weight must be a .*; got Linear"),
    "one dimension": (torch.ones(3), None, ValueError, r"weight must be \(V, d\) .*; got \(3,\)"),
    "three dimensions": (torch.ones(3, 2, 1), None, ValueError, r"weight must be \(V, d\) .*; got \(3, 2, 1\)"),
    "no tokens": (
        torch.ones(0, 3),
        None,
        ValueError,
        r"weight must be \(V, d\) with at least one token .*; got \(0, 3\)",
    ),
    "no dimensions": (torch.ones(3, 0), None, ValueError, r"weight must be \(V, d\) .*; got \(3, 0\)"),
    "NaN": (NOT_FINITE, None, ValueError, "weight must be finite; row 2 is not"),
    "infinity": (NOT_FINITE.nan_to_num(nan=torch.inf), None, ValueError, "weight must be finite; row 2 is not"),
    "banned: all": (torch.eye(3), [0, 1, 2], ValueError, "banned leaves no token: all 3 are banned"),
    "banned: all by a mask": (
        torch.eye(3),
        torch.ones(3).bool(),
        ValueError,
        "banned leaves no token: all 3 are banned",
    ),
    "banned: outside": (torch.eye(3), [0, 3], ValueError, "banned must hold ids from 0 to 2; got 3"),
    "banned: negative": (torch.eye(3), torch.tensor([-1]), ValueError, "banned must hold ids from 0 to 2; got -1"),
    "banned: long mask": (torch.eye(3), torch.zeros(4).bool(), ValueError, r"banned must be a mask .* \(4,\)"),
    "banned: square mask": (torch.eye(3), torch.zeros(3, 3).bool(), ValueError, r"banned must be a mask .* \(3, 3\)"),
    "banned: fractions": (torch.eye(3), [0.5], TypeError, "banned must .*; got .*float"),
    "banned: float tensor": (torch.eye(3), torch.tensor([1.5]), TypeError, "banned must .*; got .*float"),
    "banned: one id": (torch.eye(3), 1, TypeError, "banned must .*; got int"),
    "banned: words": (torch.eye(3), ["a"], TypeError, "banned must .*; got "),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    weight, banned, kind, match = BAD[bad]
    with refused(kind, match):
        TokenTable(weight, banned)


def test_refresh_refuses_what_became_bad():
    weight = torch.eye(4)
    table = TokenTable(weight)
    weight[3, 0] = torch.inf
    with refused(ValueError, "weight must be finite; row 3 is not"):
        table.refresh()
