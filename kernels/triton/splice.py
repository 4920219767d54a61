"""Splice in Triton: `out = template.clone(); out[:, slots] = hard[owner]`, and its backward, one kernel each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
BLOCK_L = 64  # slots compared at once


@triton.jit
def _cast(values, DTYPE: tl.constexpr):
    """Same as `values.to(DTYPE)` in torch: float64 becomes a 16-bit type by way of float32; ties go to even."""
    if DTYPE == tl.bfloat16 and values.dtype != tl.bfloat16:
        # The bits are rounded here, because Triton's interpreter rounds to bfloat16 towards zero.
        single = values.to(tl.float32)
        bits = single.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(single == single, rounded, 0x7FC0).to(tl.int16).to(DTYPE, bitcast=True)
    elif DTYPE == tl.float16 and values.dtype != tl.float16:
        return values.to(tl.float32).to(DTYPE)
    else:
        return values.to(DTYPE)


@triton.jit(do_not_specialize=["rows", "length", "positions_length"])
def _splice_kernel(
    template,
    hard,
    slots,
    owner,
    out,
    rows,
    positions_length,
    length,
    d,
    stride_tb,
    stride_ts,
    stride_td,
    stride_hr,
    stride_hl,
    stride_hd,
    stride_slots,
    stride_owner,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[b, s] = hard[owner[b], l] where slots[l] == s, else template[b, s].

    One program: BLOCK_R of the `rows` = B S rows of out (B, S, d), which is contiguous, by BLOCK_D columns. S is
    positions_length, L is length. Values are cast to out's dtype.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = row < rows
    b = row // positions_length
    s = row % positions_length
    slot = tl.full([BLOCK_R], -1, tl.int32)
    for start in range(0, length, BLOCK_L):
        at = start + tl.arange(0, BLOCK_L)
        taken = tl.load(slots + at.to(tl.int64) * stride_slots, mask=at < length, other=-1)
        slot = tl.maximum(slot, tl.max(tl.where(taken[None, :] == s[:, None], at[None, :], -1), 1))
    free = slot < 0
    prompt = tl.load(owner + b * stride_owner, mask=valid, other=0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    mask = valid[:, None] & (column < d)[None, :]
    source = template + (b * stride_tb + s * stride_ts)[:, None] + (column * stride_td)[None, :]
    kept = tl.load(source, mask=mask & free[:, None], other=0.0)
    source = hard + (prompt * stride_hr + slot * stride_hl)[:, None] + (column * stride_hd)[None, :]
    put = tl.load(source, mask=mask & (slot >= 0)[:, None], other=0.0)
    values = tl.where(free[:, None], kept, _cast(put, dtype))
    tl.store(out + row[:, None] * d + column[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["batch", "pairs", "length"])
def _splice_backward_kernel(
    grad,
    slots,
    owner,
    total,
    batch,
    pairs,
    length,
    d,
    stride_gb,
    stride_gs,
    stride_gd,
    stride_slots,
    stride_owner,
    BLOCK_P: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """total[r, l] = sum of grad[b, slots[l]] over b with owner[b] == r, b ascending, in total's dtype.

    One program: BLOCK_P of the `pairs` = R L rows of total (R, L, d), which is contiguous, by BLOCK_D columns. If no
    row carries a pair's prompt, the sum is 0. L is length, B is batch.
    """
    dtype: tl.constexpr = total.dtype.element_ty
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = pair < pairs
    prompt = pair // length
    slot = tl.load(slots + pair % length * stride_slots, mask=valid, other=0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    mask = valid[:, None] & (column < d)[None, :]
    source = grad + (slot * stride_gs)[:, None] + (column * stride_gd)[None, :]
    sums = tl.full([BLOCK_P, BLOCK_D], 0, dtype)
    for start in range(0, batch, BLOCK_B):
        at = start + tl.arange(0, BLOCK_B)
        owners = tl.load(owner + at.to(tl.int64) * stride_owner, mask=at < batch, other=-1)
        mine = owners[None, :] == prompt[:, None]
        # The loop runs from the first row that carries the prompt to the last; often there is only one.
        first = tl.min(tl.min(tl.where(mine, at[None, :], batch), 1), 0).to(tl.int64)
        last = tl.max(tl.max(tl.where(mine, at[None, :], -1), 1), 0).to(tl.int64)
        for b in range(first, last + 1, UNROLL):
            for ahead in tl.static_range(UNROLL):
                carried = tl.load(owner + (b + ahead) * stride_owner, mask=b + ahead < batch, other=-1)
                rows = source + (b + ahead) * stride_gb
                sums += tl.load(rows, mask=mask & (prompt == carried)[:, None], other=0.0).to(dtype)
    tl.store(total + pair[:, None] * d + column[None, :], sums, mask=mask)


def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    """Same as `out = template.clone(); out[:, slots] = hard[owner]`.

    template (B, S, d), hard (R, L, d), slots (L,), owner (B,) -> (B, S, d) in the template's dtype.
    """
    b, s, d = template.shape
    out = torch.empty(template.shape, dtype=template.dtype, device=template.device)
    if out.numel() == 0:
        return out
    block_d = min(1024, triton.next_power_of_2(d))
    block_r = min(1024, triton.next_power_of_2(b * s)) if INTERPRETED else max(1, 1024 // block_d)
    with torch.cuda.device_of(template):
        _splice_kernel[(triton.cdiv(b * s, block_r), triton.cdiv(d, block_d))](
            template,
            hard,
            slots,
            owner,
            out,
            b * s,
            s,
            len(slots),
            d,
            *template.stride(),
            *hard.stride(),
            *slots.stride(),
            *owner.stride(),
            BLOCK_R=block_r,
            BLOCK_L=BLOCK_L,
            BLOCK_D=block_d,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


def splice_backward(grad: Tensor, slots: Tensor, owner: Tensor, prompts: int) -> Tensor:
    """grad (B, S, d) -> (R, L, d): the sum over the rows of each owner at the slots, in float32 or wider."""
    d, pairs = grad.shape[2], prompts * len(slots)
    wide = torch.promote_types(grad.dtype, torch.float32)
    total = torch.empty(prompts, len(slots), d, dtype=wide, device=grad.device)
    if total.numel() == 0:
        return total
    block_d = min(512, triton.next_power_of_2(d))
    block_p = min(256, triton.next_power_of_2(pairs)) if INTERPRETED else 1
    with torch.cuda.device_of(grad):
        _splice_backward_kernel[(triton.cdiv(pairs, block_p), triton.cdiv(d, block_d))](
            grad,
            slots,
            owner,
            total,
            len(grad),
            pairs,
            len(slots),
            d,
            *grad.stride(),
            *slots.stride(),
            *owner.stride(),
            BLOCK_P=block_p,
            BLOCK_B=1024,
            BLOCK_D=block_d,
            UNROLL=1 if INTERPRETED else 8,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return total
