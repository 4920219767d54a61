"""Splice in torch: `out = template.clone(); out[:, slots] = hard[owner]`, and its backward."""

from __future__ import annotations

import torch
from torch import Tensor


def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    """template (B, S, d), hard (R, L, d), slots (L,), owner (B,) -> (B, S, d) in the template's dtype."""
    return template.index_copy(1, slots, hard.to(template.dtype)[owner])


def splice_backward(grad: Tensor, slots: Tensor, owner: Tensor, prompts: int) -> Tensor:
    """grad (B, S, d) -> (R, L, d): the sum over the rows of each owner at the slots, in float32 or wider."""
    at_slots = grad.index_select(1, slots)
    wide = at_slots.to(torch.promote_types(grad.dtype, torch.float32))
    total = wide.new_zeros(prompts, *wide.shape[1:])
    # index_put_ adds in a fixed order on every device; index_add_ does not on CUDA.
    return total.index_put_((owner,), wide, accumulate=True)
