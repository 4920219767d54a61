"""Times the straight-through projection, forward and backward, beside the lines that it replaces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pez_fast import project
from pez_fast.ops import IMPLEMENTATIONS

LINES = "the lines"


def lines(soft: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids = (F.normalize(soft.detach(), dim=-1) @ F.normalize(weight, dim=-1).T).argmax(-1)
    return soft + (weight[ids] - soft).detach(), ids


@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, LINES])
def test_project(name, rows, setting, usable, measure):
    soft = setting.x[:rows].clone().requires_grad_()
    grad = torch.randn_like(soft)
    if name in IMPLEMENTATIONS:
        usable(name)
        setting.table.prepared(name)

    def call() -> torch.Tensor:
        hard, _ = lines(soft, setting.weight) if name == LINES else project(soft, setting.table, name)
        return torch.autograd.grad(hard, soft, grad)[0]

    if name != LINES:
        hard, ids = project(soft, setting.table, name)
        assert setting.wrong(ids, rows) == 0 and torch.equal(hard, setting.weight[ids])
    assert torch.equal(call(), grad)
    measure(f"project and its backward, {rows} rows", call)
