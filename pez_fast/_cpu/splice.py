"""Splice on a CPU: `out = template.clone(); out[:, slots] = hard[owner]` in one pass, and its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C
from pez_fast._shared.pointers import TYPES
from pez_fast._shared.threads import threads


def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    """template (B, S, d), hard (R, L, d), slots (L,), owner (B,) -> (B, S, d) in the template's dtype."""
    template, hard, slots, owner = (
        _dense(template),
        hard.to(template.dtype).contiguous(),
        slots.contiguous(),
        owner.contiguous(),
    )
    out = torch.empty(template.shape, dtype=template.dtype)
    item = template.element_size()
    row, position = (stride * item for stride in template.stride()[:2])
    shape = (*template.shape, *hard.shape[:2])
    _C.splice(
        template.data_ptr(),
        row,
        position,
        hard.data_ptr(),
        slots.data_ptr(),
        owner.data_ptr(),
        shape,
        item,
        out.data_ptr(),
        threads(),
    )
    return out


def splice_backward(grad: Tensor, slots: Tensor, owner: Tensor, prompts: int) -> Tensor:
    """grad (B, S, d) -> (R, L, d): the sum over the rows of each owner at the slots, in float32 or wider."""
    grad, slots, owner = _dense(grad), slots.contiguous(), owner.contiguous()
    shape = (*grad.shape, prompts, len(slots))
    total = torch.empty(prompts, len(slots), grad.shape[2], dtype=torch.promote_types(grad.dtype, torch.float32))
    row, position = grad.stride()[:2]
    _C.splice_backward(
        grad.data_ptr(),
        TYPES[grad.dtype],
        row,
        position,
        slots.data_ptr(),
        owner.data_ptr(),
        shape,
        total.data_ptr(),
        threads(),
    )
    return total


def _dense(x: Tensor) -> Tensor:
    """x with its last dimension contiguous."""
    return x if x.stride(2) == 1 else x.contiguous()
