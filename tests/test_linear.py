"""The linear layer of the frozen towers equals torch's, within rounding, with either library."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from inputs import normal, seeded

from pez_fast._shared import linear as module
from pez_fast._shared.linear import FEW, FrozenLinear, linear


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
