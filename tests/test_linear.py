"""The linear layer of the frozen towers equals torch's, within rounding, with either library."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from inputs import normal, seeded

from pez_fast._shared import linear as module
from pez_fast._shared.linear import FEW, FrozenLinear, frozen_products, linear


@pytest.fixture(params=["as torch is built", "without oneDNN"])
def library(request, monkeypatch):
    if request.param == "without oneDNN":
        monkeypatch.setattr(module, "_available", lambda: False)
    return request.param


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 3, 7), (0, 7), (33, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_torch(library, shape, with_bias, dtype):
    generator = seeded("equals")
    x, weight, bias, grad = (normal(generator, *s).to(dtype) for s in (shape, (11, 7), (11,), (*shape[:-1], 11)))
    x.requires_grad_()
    bias = bias if with_bias else None
    out = linear(x, weight, bias)
    (gradient,) = torch.autograd.grad(out, x, grad)
    expected = F.linear(x, weight, bias)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    assert out.dtype == dtype and out.shape == expected.shape
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradient, wanted)


def test_layouts_and_no_gradient_onto_the_weight(library):
    generator = seeded("layouts")
    x = normal(generator, 6, 4, 8).transpose(0, 1).requires_grad_()
    weight = normal(generator, 8, 5).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    linear(x, weight).sum().backward()
    assert weight.grad is None and x.grad is not None


@pytest.mark.parametrize("rows", [16, 20, 36])
def test_rows_do_not_depend_on_how_many_there_are(rows):
    generator = seeded("rows")
    x, weight = normal(generator, 120, 64), normal(generator, 96, 64)
    assert torch.equal(linear(x[:rows], weight), linear(x, weight)[:rows])


@pytest.mark.parametrize("rows", [16, 20, FEW, FEW + 1])
def test_ordered_weights_change_no_bit(library, rows):
    generator = seeded("ordered")
    x, weight, bias = (normal(generator, *s) for s in ((rows, 64), (96, 64), (96,)))
    frozen, few, many = FrozenLinear(weight, bias), x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        assert torch.equal(frozen(few), linear(many, weight, bias))
    grad = normal(generator, rows, 96)
    (ours,), (wanted,) = (
        torch.autograd.grad(frozen(few), few, grad),
        torch.autograd.grad(linear(many, weight, bias), many, grad),
    )
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alike", [True, False])
def test_products_of_other_libraries_equal_torch(library, rows, dtype, alike, monkeypatch):
    monkeypatch.setattr(module, "_mkl_rounds_alike", lambda threads: alike)
    generator = seeded("frozen products")
    x, weight, bias = (normal(generator, *s).to(dtype) for s in ((2, rows, 8), (7, 8), (7,)))
    x.requires_grad_()

    def products():
        flat = x.reshape(-1, 8)
        return [
            F.linear(x, weight),
            F.linear(input=x, weight=weight, bias=bias),
            torch.nn.functional.linear(flat, weight, bias),
            torch.addmm(bias, flat, weight.t()),
            torch.addmm(bias, flat, weight.t(), beta=2),
            torch.addmm(F.linear(flat, weight), flat, weight.t()),
        ]

    expected = products()
    with frozen_products(x.device):
        found = products()
    for out, wanted in zip(found, expected, strict=True):
        assert out.dtype == dtype and out.shape == wanted.shape
        torch.testing.assert_close(out, wanted)
        gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (out, wanted)]
        torch.testing.assert_close(*gradients)


def test_products_of_other_libraries_do_not_depend_on_how_many_rows_there_are():
    generator = seeded("frozen rows")
    x, layer, weight = (
        normal(generator, 120, 64),
        torch.nn.Linear(64, 96).requires_grad_(False),
        normal(generator, 64, 9),
    )
    with frozen_products(x.device):
        for product in (layer, lambda rows: torch.addmm(weight[0], rows, weight)):
            assert all(torch.equal(product(x[:rows]), product(x)[:rows]) for rows in (1, 2, 7, 20, 37))


@pytest.mark.parametrize("learned", ["weight", "bias"])
def test_weights_that_are_learned_get_their_gradient(learned):
    layer = torch.nn.Linear(8, 5)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == learned)
    with frozen_products(torch.device("cpu")):
        layer(torch.ones(20, 8)).sum().backward()
    assert getattr(layer, learned).grad is not None
