"""The straight-through projection: E[ids] to the bit forward, the incoming gradient to the bit backward."""

from __future__ import annotations

import pytest
import torch
from cases import case, oracle
from inputs import DTYPES, each_impl, normal, poisoned, refused, seeded
from torch import Tensor, nn

from pez_fast import TokenTable, nearest_token, ops, project, reference, splice

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def bits(x: Tensor) -> Tensor:
    """The bits of x, so that -0 differs from 0 and NaN equals itself."""
    return x.detach().cpu().contiguous().view(BITS[x.dtype])


def special(grad: Tensor) -> Tensor:
    """Values that arithmetic on a gradient (x + (hard - x).detach(), a product with 1, a sum with 0) would change."""
    grad = grad.clone()
    limits = torch.finfo(grad.dtype)
    values = torch.tensor(
        [-0.0, torch.inf, -torch.inf, torch.nan, limits.max, limits.tiny, limits.tiny / 4], dtype=grad.dtype
    )
    grad.view(-1)[: len(values)] = values.to(grad.device)
    return grad


@each_impl
@pytest.mark.parametrize("table_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("leading", [(7,), (3, 4), ()])
def test_identity(leading, x_dtype, table_dtype, impl, device):
    g = seeded("identity")
    weight = normal(g, 50, 8).to(table_dtype)
    weight[:, 2] = -0.0
    x = normal(g, *leading, 8).to(x_dtype)
    ids = reference.nearest_token(x.reshape(-1, 8), weight)[0]
    table = TokenTable(weight.to(device))
    leaf = x.to(device, copy=True).requires_grad_()
    with poisoned():
        hard, found = project(leaf, table, impl)
    assert hard.dtype == table_dtype and found.dtype == torch.int64
    assert torch.equal(found.cpu(), ids.view(leading))
    assert torch.equal(bits(hard), bits(weight[ids].view(*leading, 8)))
    grad = special(normal(g, *leading, 8).to(table_dtype).to(device))
    hard.backward(grad)
    assert leaf.grad.dtype == x_dtype
    assert torch.equal(bits(leaf.grad), bits(grad.to(x_dtype)))


@each_impl
@pytest.mark.parametrize(
    "name", ["raggeder", "last_bit", "banned_twins", "zero_rows", "tightly_clustered", "mixed_norms"]
)
def test_hurting_inputs(name, impl, device):
    x, weight, banned = case(name)
    leaf = x.to(device, copy=True).requires_grad_()
    hard, found = project(leaf, TokenTable(weight.to(device), banned), impl)
    assert found.tolist() == oracle(name)[0].tolist()
    assert torch.equal(bits(hard), bits(weight[oracle(name)[0]]))
    grad = special(normal(seeded(name), *x.shape).to(device))
    (got,) = torch.autograd.grad(hard, leaf, grad)
    assert torch.equal(bits(got), bits(grad))


@each_impl
def test_as_the_reference(impl, device):
    g = seeded("reference")
    weight, grad = normal(g, 50, 8), normal(g, 3, 4, 8)
    x = normal(g, 3, 4, 8).requires_grad_()
    want_hard, want_ids = reference.project(x, weight)
    (want_grad,) = torch.autograd.grad(want_hard, x, grad)
    leaf = x.detach().to(device).requires_grad_()
    hard, ids = project(leaf, TokenTable(weight.to(device)), impl)
    (got_grad,) = torch.autograd.grad(hard, leaf, grad.to(device))
    for got, want in ((hard, want_hard), (ids, want_ids), (got_grad, want_grad)):
        assert torch.equal(got.cpu(), want)


@each_impl
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_gradient_onto_the_table(dtype, impl, device):
    embedding = nn.Embedding(40, 6, dtype=dtype, device=device)
    x = normal(seeded("table"), 5, 6).to(device).requires_grad_()
    hard, _ = project(x, TokenTable(embedding), impl)
    hard.float().square().sum().backward()
    assert x.grad is not None and embedding.weight.grad is None
    assert embedding.weight.requires_grad, "the embedding is the caller's"


@each_impl
def test_the_result_is_a_copy(impl, device):
    weight = normal(seeded("copy"), 40, 6).to(device)
    before = weight.clone()
    hard, _ = project(weight[:7].clone(), TokenTable(weight), impl)
    hard.zero_()
    assert torch.equal(weight, before)


@each_impl
def test_without_gradient(impl, device):
    table = TokenTable(normal(seeded("none"), 40, 6).to(device))
    x = normal(seeded("x"), 5, 6).to(device)
    assert not project(x, table, impl)[0].requires_grad
    x.requires_grad_()
    assert project(x, table, impl)[0].requires_grad
    with torch.no_grad():
        assert not project(x, table, impl)[0].requires_grad
    with torch.inference_mode():
        assert project(x, table, impl)[0].is_inference()


@each_impl
def test_inside_a_graph(impl, device):
    """The gradient flows through x to its inputs, is summed over two projections, and may come from a view."""
    g = seeded("graph")
    table = TokenTable(normal(g, 40, 6).to(device))
    p = normal(g, 6, 5).to(device).requires_grad_()
    grads = normal(g, 2, 5, 6).to(device)
    x = 2 * p.T  # not contiguous
    (project(x, table, impl)[0] * grads[0]).sum().backward()
    assert torch.equal(p.grad, 2 * grads[0].T)
    p.grad = None
    one, two = (project(2 * p.T, table, impl)[0] for _ in range(2))
    torch.autograd.backward([one, two], [grads[0], grads[1].T.contiguous().T])
    assert torch.equal(p.grad, 2 * grads[0].T + 2 * grads[1].T)
    p.grad = None
    project(p.T, table, impl)[0].sum().backward()  # an expanded gradient
    assert torch.equal(p.grad, torch.ones_like(p))


@each_impl
def test_under_autocast(impl, device):
    x, weight, _ = case("tightly_clustered")
    leaf = x.to(device, copy=True).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        hard, _ = project(leaf, TokenTable(weight.to(device)), impl)
    assert torch.equal(bits(hard), bits(weight[oracle("tightly_clustered")[0]]))
    grad = special(normal(seeded("autocast"), *x.shape).to(device))
    hard.backward(grad)
    assert torch.equal(bits(leaf.grad), bits(grad))


@each_impl
def test_not_finite(impl, device):
    x = normal(seeded("finite"), 2, 3, 6)
    x[1, 0, 4] = torch.nan
    table = TokenTable(normal(seeded("table"), 40, 6).to(device))
    if device == "cpu":
        with refused(ValueError, "x must be finite; row 3 is not"):
            project(x, table, impl)
    else:
        hard, ids = project(x.to(device), table, impl)
        assert int(ids[1, 0]) == -1 and hard[1, 0].isnan().all()
        assert (ids < 0).sum() == 1 and hard.isnan().sum() == 6


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
def test_operator(x_dtype, table_dtype):
    weight = normal(seeded("operator"), 20, 6).to(table_dtype)
    for n in (0, 1, 4):
        x = normal(seeded("x"), n, 6).to(x_dtype).requires_grad_()
        ids = nearest_token(x, TokenTable(weight))[0]
        torch.library.opcheck(ops.straight_through, (x, weight, ids))


@each_impl
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_with_splice(backend, impl, device):
    """One graph, forward and backward, with the same result as without compilation."""
    torch._dynamo.reset()
    g = seeded("compiled")
    table = TokenTable(normal(g, 60, 6).to(device))
    template, slots = normal(g, 5, 9, 6).to(device), torch.tensor([1, 2, 4], device=device)
    owner = torch.tensor([0, 1, 1, 0, 1], device=device)

    def spliced(x: Tensor) -> tuple[Tensor, Tensor]:
        hard, ids = project(x, table, impl)
        return splice(template, hard, slots, owner, impl), ids

    results = []
    for function in (spliced, torch.compile(spliced, fullgraph=True, backend=backend)):
        x = normal(seeded("x"), 2, 3, 6).to(device).requires_grad_()
        out, ids = function(x)
        out.backward(normal(seeded("grad"), *out.shape).to(device))
        results.append((out, ids, x.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)
