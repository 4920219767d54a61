"""Devices other than CUDA: a simulated one without float64, like Apple's MPS.

The simulated device has tensors of its own (`DeviceTensor`), which keep their values in a CPU tensor that no other code
sees. Every operation goes through `NoFloat64`. It refuses what such a device refuses: to make or take a float64 tensor,
to mix its tensors with those of the CPU, and to take the minimum of int64 values by `scatter_reduce`, which older MPS
lacks. It treats subnormal numbers as zero. The only way out is a copy to the CPU, and `NoFloat64` counts the copied
elements. Torch's name for the device is "meta", because torch computes gradients of such tensors on every machine; of
"mps" tensors only if it was built with MPS.
"""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from inputs import integers, normal, refused, seeded
from tolerances import SIMILARITY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from pez_fast import PEZ, TokenTable, info, nearest_token, ops, project, reference, splice
from pez_fast._shared import resolve_ties
from pez_fast._torch import nearest as torch_nearest

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
FLOAT64 = torch.float64
MPS_ERROR = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
XPU_ERROR = "Required aspect fp64 is not supported on the device"
TO, COPY = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class DeviceTensor(torch.Tensor):
    """A tensor on the simulated device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the simulated device")


class NoFloat64(TorchDispatchMode):
    """The simulated device; `moved` counts elements copied from it to the CPU. `allocates`: it can allocate float64."""

    def __init__(self, error: Exception, allocates: bool = False) -> None:
        super().__init__()
        self.error, self.allocates, self.moved = error, allocates, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            if func.namespace == "pez_fast":  # called as on any device, with tensors of that device
                return getattr(ops, func.name().split("::")[1])._init_fn(*args, **kwargs)
            made = func.decompose(*args, **kwargs)  # decomposed into the operations that a device computes
            if made is not NotImplemented:
                return made
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        held = [t for t in tensors if isinstance(t, DeviceTensor)]
        device = torch.device(kwargs.get("device") or (DEVICE if held else CPU))
        if not held and device == CPU:
            return func(*args, **kwargs)
        if func not in (TO, COPY) and any(t.ndim and not isinstance(t, DeviceTensor) for t in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
        if "scatter_reduce" in func.name() and tensors[0].dtype == torch.int64:
            raise RuntimeError(f"{func} of int64 is not supported by the device")
        if any(t.dtype == FLOAT64 for t in tensors) or (kwargs.get("dtype") == FLOAT64 and not self.allocates):
            raise self.error
        torch.set_flush_denormal(func not in (TO, COPY))
        try:
            inside_args, inside = tree_map(lambda t: t.held if isinstance(t, DeviceTensor) else t, (args, kwargs))
            made = func(*inside_args, **(inside | {"device": CPU} if "device" in inside else inside))
        finally:
            torch.set_flush_denormal(False)
        if device == CPU or (func is COPY and not isinstance(args[0], DeviceTensor)):
            self.moved += sum(t.numel() for t in held)
            return args[0] if func is COPY else made
        if not self.allocates and any(t.dtype == FLOAT64 for t in tree_flatten(made)[0] if isinstance(t, Tensor)):
            raise self.error
        same = {id(t.held): t for t in held}
        # An operation in place returns its own tensor.
        return tree_map(lambda t: same.get(id(t), DeviceTensor(t)) if isinstance(t, Tensor) else t, made)


@pytest.fixture(autouse=True)
def fresh_caches():
    resolve_ties._has_float64.cache_clear()
    yield
    resolve_ties._has_float64.cache_clear()


@pytest.fixture
def no_float64(fresh_caches):
    with NoFloat64(TypeError(MPS_ERROR)) as device:
        yield device


def test_the_device_refuses_float64(no_float64):
    x, wide = torch.ones(3).to(DEVICE), torch.ones(3, dtype=FLOAT64)
    assert x.device == DEVICE and (x + 1).sum().cpu() == 6
    for wrong in (
        lambda: x.double(),
        lambda: torch.ones(3, dtype=FLOAT64, device=DEVICE),
        lambda: wide.to(DEVICE),
        lambda: x.new_zeros(3, dtype=FLOAT64),
        lambda: x.sum(dtype=FLOAT64),
        lambda: x.copy_(wide),
        lambda: torch.mul(x, wide[0]),
    ):
        with pytest.raises(TypeError, match="doesn't support float64"):
            wrong()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    assert not (x * 1e-40).cpu().any(), "subnormal numbers are zero"


@pytest.mark.parametrize("refusal", [(TypeError(MPS_ERROR), False), (RuntimeError(XPU_ERROR), True)])
def test_float64_device(refusal):
    with NoFloat64(*refusal):
        assert resolve_ties.float64_device(DEVICE) == CPU == resolve_ties.float64_device(CPU)
    x = torch.ones(3)
    assert resolve_ties.to_float64_device(x) is x, "nothing moves where there is float64"


def test_memory_that_runs_out_is_no_answer():
    with pytest.raises(torch.OutOfMemoryError), NoFloat64(torch.OutOfMemoryError("out of memory")):
        resolve_ties.float64_device(DEVICE)


def assert_exact_on_device(x: Tensor, weight: Tensor, banned=()) -> None:
    ids, cosines = reference.nearest_token(x, weight, banned)
    found, similarity = nearest_token(x.to(DEVICE), TokenTable(weight.to(DEVICE), banned), "torch")
    assert found.device == similarity.device == DEVICE and similarity.dtype == torch.float32
    assert torch.equal(found.cpu(), ids)
    torch.testing.assert_close(similarity.cpu().double(), cosines, rtol=0, atol=SIMILARITY)


@pytest.mark.parametrize("name", [n for n in CASES if "float64" not in n and n not in ("large_vocabulary", "wide")])
def test_equals_oracle(name, no_float64):
    assert_exact_on_device(*CASES[name](seeded(name)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(dtype, no_float64):
    """Random, repeated and parallel rows, and ties."""
    g = seeded("narrow")
    some = normal(g, 30, 20).to(dtype)
    weight = torch.cat([some, some[:20], 2 * some[10:], integers(g, -1, 1, 40, 20).to(dtype)])
    assert_exact_on_device(torch.cat([normal(g, 12, 20).to(dtype), weight[::7]]), weight)


@pytest.mark.parametrize("name", ["tightly_clustered", "parallel", "small_integers", "permuted"])
def test_small_blocks(name, no_float64, monkeypatch):
    """Near ties are resolved again and again before the scan is over; also the exhaustive search."""
    monkeypatch.setattr(torch_nearest, "ROWS", 7)
    for limit, size in (("TOKENS", 131), ("CANDIDATES", 5), ("ELEMENTS", 1 << 12)):
        monkeypatch.setattr(resolve_ties, limit, size)
    x, weight, _ = CASES[name](seeded(name))
    assert_exact_on_device(x := x[(x != 0).any(-1)], weight)
    table = TokenTable(weight.to(DEVICE))
    found = resolve_ties.exhaustive(x.to(DEVICE), table.weight, table.ids)
    assert found.device == DEVICE and torch.equal(found.cpu(), nearest_token(x, TokenTable(weight))[0])


def test_rows_that_are_not_finite(no_float64):
    x = torch.ones(4, 3)
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    x, table, counts = x.to(DEVICE), TokenTable(torch.eye(3).to(DEVICE)), torch.zeros(3, device=DEVICE).long()
    found, similarity = torch_nearest.nearest(x, table.weight, table.ids, table.prepared("torch"), counts)
    assert found.cpu().tolist() == [0, -1, 0, -1] and similarity.cpu().isnan().tolist() == [False, True, False, True]
    assert counts.cpu().tolist() == [0, 2, 0]
    assert project(x, table)[0].cpu().isnan().all(-1).tolist() == [False, True, False, True]


def test_only_the_rows_and_their_candidates_move(no_float64):
    """The table, which is prepared once, does not move."""
    x, weight = normal(seeded("moved"), 16, 64), normal(seeded("table"), 3000, 64)
    table, before = TokenTable(weight.to(DEVICE)), no_float64.moved
    nearest_token(x.to(DEVICE), table, "torch")
    assert 2 * x.numel() <= no_float64.moved - before < 3 * x.numel()


def test_the_table(no_float64, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_DEBUG", "1")
    weight = normal(seeded("table"), 30, 6)
    weight[5] = weight[2]
    table, x = TokenTable(weight.to(DEVICE), torch.tensor([0, 7])), torch.ones(6).to(DEVICE)
    assert table.device == table.ids.device == DEVICE and table.fingerprint() == TokenTable(weight).fingerprint()
    assert table.ids.cpu().tolist() == [v for v in range(30) if v not in (0, 5, 7)]
    nearest_token(x, table)
    table.weight[3, 2] += 1
    with refused(RuntimeError, "weights of this TokenTable were changed"):
        nearest_token(x, table)
    with refused(ValueError, "weight must be finite; row 3 is not"):
        TokenTable(weight.index_fill(0, torch.tensor(3), torch.nan).to(DEVICE))


def test_project_and_splice(no_float64):
    x, weight, at = normal(seeded("x"), 2, 3, 8), normal(seeded("weight"), 40, 8), [1, 4, 2]
    leaf = x.to(DEVICE).requires_grad_()
    hard, ids = project(leaf, TokenTable(weight.to(DEVICE)))
    expected = reference.nearest_token(x.view(-1, 8), weight)[0].view(2, 3)
    assert torch.equal(ids.cpu(), expected) and torch.equal(hard.detach().cpu(), weight[expected])
    full = splice(torch.zeros(2, 6, 8).to(DEVICE), hard, torch.tensor(at).to(DEVICE))
    assert torch.equal(full.detach().cpu()[:, at], weight[expected])
    (3 * full).sum().backward()
    assert leaf.grad.device == DEVICE and (leaf.grad.cpu() == 3).all()


def test_pez(no_float64):
    """Each step gives the CPU's ids and prompts. Torch's fused AdamW knows MPS, but not the name of this device."""
    start, weight, runs = normal(seeded("start"), 2, 4, 8), normal(seeded("weight"), 60, 8), []
    for device in (CPU, DEVICE):
        prompts = start.to(device, copy=True)
        optimizer = PEZ(prompts, TokenTable(weight.to(device)), lr=0.3, impl="torch", fused=False)
        for _ in range(5):
            hard, ids = optimizer.project()
            (hard - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append((ids.cpu(), prompts.detach().cpu()))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1])


@pytest.mark.parametrize("impl", ["auto", *(i for i in ("cpu", "torch") if info("cpu")["implementations"][i] is True)])
def test_the_choice_is_not_traced(impl, recwarn):
    """The compiler can trace neither an import nor a cache."""
    table, x = TokenTable(torch.eye(5)), torch.rand(3, 5, generator=seeded("traced"))
    compiled = torch.compile(lambda x: nearest_token(x, table, impl)[0], fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), nearest_token(x, table, impl)[0])
    assert not [w for w in recwarn if "lru_cache" in str(w.message)]
