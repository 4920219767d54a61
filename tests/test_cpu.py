"""The C++ implementation from within: this CPU's instruction sets, the scan's bound, the candidate buffer, threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, SHAPES, SMALL_CASES, Case, case, oracle
from inputs import assert_exact, integers, normal, refused, seeded

from pez_fast import TokenTable, info, nearest_token, ops

if info("cpu")["implementations"]["cpu"] is not True:
    pytest.skip(info("cpu")["implementations"]["cpu"], allow_module_level=True)

from pez_fast import _C
from pez_fast._cpu import nearest
from pez_fast._shared import pointers, resolve_ties
from pez_fast._shared.threads import threads as pool

SETS = _C.instruction_sets()


@pytest.fixture
def instructions(request):
    _C.use(request.param)
    yield request.param
    _C.use("auto")


each_set = pytest.mark.parametrize("instructions", SETS, indirect=True)


@each_set
@pytest.mark.parametrize("name", [*SMALL_CASES, *SHAPES, "wide"])
def test_equals_oracle(name, instructions):
    assert _C.instruction_set() == instructions
    assert_exact(*case(name), "cpu", "cpu", oracle(name))


def test_instruction_sets():
    assert SETS[-1] == "portable" and _C.instruction_set() == SETS[0]
    assert info("cpu")["instruction_set"] == SETS[0]
    with refused(ValueError, "name must be an instruction set of this CPU; got 'mmx'"):
        _C.use("mmx")


@pytest.mark.skipif(len(SETS) == 1, reason="this CPU has one only")
def test_auto_leaves_the_portable_scan_to_torch():
    _C.use("portable")
    try:
        assert info("cpu")["auto"] == {"nearest": "torch", "splice": "torch"}
        assert info("cpu")["auto_skipped"]["cpu"] == "this CPU has neither AVX2 nor AVX512-VNNI"
    finally:
        _C.use("auto")
    assert info("cpu")["auto"] == {"nearest": "cpu", "splice": "cpu"}


def bounds(x: torch.Tensor, table: TokenTable) -> tuple[torch.Tensor, torch.Tensor]:
    """The scan's lower and upper bounds on every cosine."""
    prepared = table.prepared("cpu")
    upper, lower = torch.full((2, len(x), len(table.ids)), torch.nan)
    _C.bounds(
        pointers.matrix(x),
        pointers.matrix(table.weight),
        nearest._table(table.ids, prepared),
        upper.data_ptr(),
        lower.data_ptr(),
    )
    return lower.double(), upper.double()


DIRECTED = {
    "normal": lambda g, n, d: normal(g, n, d),
    "positive": lambda g, n, d: normal(g, n, d).abs() + 0.1,  # every rounding of the table acts in the same direction
    "one large": lambda g, n, d: normal(g, n, d).index_fill_(
        1, torch.tensor([0]), 1e3
    ),  # the other elements are rounded to zero
    "half steps": lambda g, n, d: integers(g, -127, 126, n, d).float() + 0.5,
    "two values": lambda g, n, d: integers(g, 0, 1, n, d) * 2.0 - 1,
    "few elements": lambda g, n, d: normal(g, n, d) * (torch.rand(n, d, generator=g) < 4 / d),
    "mixed": lambda g, n, d: normal(g, n, d) * 10.0 ** integers(g, -6, 6, n, d),
}


@each_set
@pytest.mark.parametrize("d", [1, 2, 3, 17, 128, 768, 4096])
@pytest.mark.parametrize("kind", DIRECTED)
def test_bound(kind, d, instructions):
    """Every true cosine is within the bound, and the bound is not much wider than rounding to integers requires."""
    g = seeded(f"{kind} {d}")
    x, weight = (DIRECTED[kind](g, n, d) for n in (30, 90))
    x = x[(x != 0).any(-1)]
    table = TokenTable(weight)
    lower, upper = bounds(x, table)
    true = resolve_ties.unit_rows(x) @ resolve_ties.unit_rows(weight[table.ids]).T
    assert (lower <= true + 2.0**-50).all() and (true <= upper + 2.0**-50).all()
    levels = 63 if instructions == "avx2" else 127
    assert (upper - lower).max() <= 2.5 * d**0.5 * (0.5 / levels + 0.5 / 127) + 1e-5


def count(x: torch.Tensor, table: TokenTable) -> list[int]:
    """Rows certified by the scan, rescored, rescanned."""
    counts = torch.zeros(3, dtype=torch.int64)
    nearest.nearest(x, table.weight, table.ids, table.prepared("cpu"), counts)
    return counts.tolist()


@each_set
def test_more_candidates_than_capacity(instructions, monkeypatch):
    """A thousand rows that float32 cannot tell apart, and a thousand that nothing can: exact ties of parallel rows."""
    g = seeded("crowd")
    exhausted, exhaustive = [], resolve_ties.exhaustive
    monkeypatch.setattr(resolve_ties, "exhaustive", lambda x, *rest: exhausted.append(len(x)) or exhaustive(x, *rest))
    close = normal(g, 1, 40) + 1e-5 * normal(g, 1000, 40)
    parallel = integers(g, -9, 9, 1, 40).float() * torch.arange(1, 1001)[:, None]
    for weight, expected in ((close, []), (parallel, [6])):
        x = torch.cat([weight[:2], weight[:4] + 0.01 * normal(g, 4, 40)])
        certified, rescored, rescanned = count(x, TokenTable(weight))
        assert (certified, rescored, rescanned) == (0, 0, 6)
        exhausted.clear()
        assert_exact(x, weight, (), "cpu", "cpu")
        assert exhausted == expected


def test_counts():
    g = seeded("counts")
    x, table = normal(g, 50, 64), TokenTable(normal(g, 500, 64))
    certified, rescored, rescanned = count(x, table)
    assert certified > 0 and rescored > 0 and rescanned == 0 and certified + rescored == 50
    assert count(table.weight[:50], table) == [50, 0, 0], "a token itself is far ahead of all the others"
    assert count(torch.zeros(3, 64), table) == [0, 0, 0]


def test_more_rows_than_are_searched_at_once():
    g = seeded("rows")
    x, weight = normal(g, 20_000, 3), normal(g, 40, 3)
    found, similarity = nearest_token(x, TokenTable(weight), "cpu")
    assert torch.equal(found, resolve_ties.exhaustive(x, weight, torch.arange(40)))
    assert not similarity.isnan().any()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads):
    """The search uses as many threads as torch is set to, and the number changes no result."""
    g = seeded("threads")
    x, weight = normal(g, 70, 24), normal(g, 900, 24)
    table = TokenTable(weight)
    want = nearest_token(x, table, "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert pool()[1] == threads
        got = nearest_token(x, TokenTable(weight), "cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_wider_than_a_sum_of_bytes():
    """Beyond 66,000 dimensions a sum of products of bytes would leave int32; all elements have the largest value."""
    x = torch.ones(2, 70_000)
    x[1] = -1
    assert_exact(*Case(x, torch.cat([x * 3, x[:1] + torch.eye(1, 70_000)])), "cpu", "cpu")


@pytest.mark.parametrize(
    ("name", "slots", "owner"), [("slots", [1, 6], [0, 1]), ("slots", [-1, 2], [0, 1]), ("owner", [1, 2], [0, 2])]
)
def test_no_index_leaves_the_tensors(name, slots, owner):
    """Even where no Python code checked the indices, as in compiled code."""
    template, hard = torch.zeros(2, 6, 3), torch.zeros(2, 2, 3)
    with refused(IndexError, f"{name} must lie from 0 to"):
        ops.splice(template, hard, torch.tensor(slots), torch.tensor(owner), "cpu")
    with refused(IndexError, f"{name} must lie from 0 to"):
        ops.splice_backward(template, torch.tensor(slots), torch.tensor(owner), 2, "cpu")


def test_build_switch():
    root = Path(__file__).parents[1]
    env = {**os.environ, "PEZ_FAST_BUILD": "gpu"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == "PEZ_FAST_BUILD must be one of auto, 0, cpu, cuda; got 'gpu'"


def test_build_info():
    assert set(_C.build_info()) == {"compiler", "date"} and _C.build_info()["compiler"]
    assert "large_vocabulary" in CASES
