"""Splice in CUDA C++: `out = template.clone(); out[:, slots] = hard[owner]`, and its backward, one launch each."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C_cuda
from pez_fast._shared.pointers import TYPES


def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    """template (B, S, d), hard (R, L, d), slots (L,), owner (B,) -> (B, S, d) in the template's dtype."""
    hard = hard.contiguous()
    out = torch.empty(template.shape, dtype=template.dtype, device=template.device)
    _launch(_C_cuda.splice, template, hard, slots, owner, hard.shape[0], out)
    return out


def splice_backward(grad: Tensor, slots: Tensor, owner: Tensor, prompts: int) -> Tensor:
    """grad (B, S, d) -> (R, L, d): the sum over the rows of each owner at the slots, in float32 or wider."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    total = torch.empty(prompts, len(slots), grad.shape[2], dtype=wide, device=grad.device)
    _launch(_C_cuda.splice_backward, grad, None, slots, owner, prompts, total)
    return total


def _launch(kernel, base: Tensor, hard: Tensor | None, slots: Tensor, owner: Tensor, prompts: int, out: Tensor) -> None:
    slots, owner = slots.contiguous(), owner.contiguous()
    args = _splice_args(base, hard, slots, owner, prompts)
    with torch.cuda.device_of(base):
        kernel(base.device.index, args, out.data_ptr(), torch.cuda.current_stream(base.device).cuda_stream)


def _splice_args(base: Tensor, hard: Tensor | None, slots: Tensor, owner: Tensor, prompts: int) -> _C_cuda.SpliceArgs:
    """The arguments of the launchers, in the order of csrc/cuda/module.cpp.

    base is (B, S, d); hard, slots and owner are contiguous.
    """
    given = (0, 0) if hard is None else (hard.data_ptr(), TYPES[hard.dtype])
    rows, positions, width = base.shape
    sizes = (rows, positions, width, prompts, len(slots))
    return base.data_ptr(), TYPES[base.dtype], base.stride(), *given, slots.data_ptr(), owner.data_ptr(), sizes
