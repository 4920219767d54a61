"""A causal text tower run from its own parameters, for the end token's feature alone.

Same as `tower.transformer(x, attn_mask)` then `ln_final` at the end token, with less work: the last block is run for that
one position, and every linear layer sees one contiguous matrix (torch's MultiheadAttention multiplies a transposed view,
position by position), by the faster library.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pez_fast._torch.linear import linear

ALIKE = 4


def filled_up(batch: Tensor) -> Tensor:
    """The batch with zero rows added up to a multiple of `ALIKE`.

    A CPU's matrix product takes rows in groups and treats those left over differently (measured with MKL: float64 rows
    round alike in multiples of 4, float32 rows from 16 on or in multiples of 4), so that without this a result would
    depend on what else is in the batch.
    """
    missing = -len(batch) % ALIKE
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch


def positions(end: int, context: int, dtype: torch.dtype) -> int:
    """How many positions to run where `end` is the last that counts: some more where that number of rows rounds alike."""
    wanted = max(end + 1, 16) if dtype == torch.float32 else end + 1 + -(end + 1) % ALIKE
    return min(wanted, context)


def runs_directly(transformer: Any) -> bool:
    """Whether its blocks are open_clip's plain ones, which are run here; others are called as they are."""
    from open_clip.transformer import ResidualAttentionBlock

    return all(
        type(block) is ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_weight is not None
        and block.attn.bias_k is None
        and not block.attn.add_zero_attn
        for block in transformer.resblocks
    )


def end_feature(tower: Any, x: Tensor, end: int) -> Tensor:
    """x (R, S, d) with positions added -> (R', d) behind `ln_final` at position `end`; rows from R on are filling."""
    if not runs_directly(tower.transformer):
        x = filled_up(x)
        mask = tower.attn_mask[: x.shape[1], : x.shape[1]]
        return tower.ln_final(tower.transformer(x, attn_mask=mask)[:, end])
    for block in tower.transformer.resblocks[:-1]:
        x = x + block.ls_1(_attention(block.attn, block.ln_1(x)))
        x = x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))
    block = tower.transformer.resblocks[-1]
    attended = _attention(block.attn, block.ln_1(x), end)
    x = filled_up(x[:, end]) + block.ls_1(attended)
    x = x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))
    return tower.ln_final(x)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    x = mlp.gelu(linear(x, mlp.c_fc.weight, mlp.c_fc.bias))
    return linear(x, mlp.c_proj.weight, mlp.c_proj.bias)


def _attention(attn: nn.MultiheadAttention, x: Tensor, end: int | None = None) -> Tensor:
    """Causal self-attention of x (R, S, d) -> (R, S, d), or for the query at `end` alone (R', d)."""
    rows, length, d = x.shape
    heads = attn.num_heads
    weight, bias = attn.in_proj_weight, attn.in_proj_bias

    def split(t: Tensor, parts: int) -> Tensor:  # (rows * length, parts * d) -> (parts, rows, heads, length, d / heads)
        return t.view(rows, -1, parts, heads, d // heads).permute(2, 0, 3, 1, 4)

    if end is None:
        q, k, v = split(linear(x, weight, bias), 3)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(out.transpose(1, 2).reshape(rows, length, d), *_output(attn))
    k, v = split(linear(x, weight[d:], None if bias is None else bias[d:]), 2)
    q = linear(filled_up(x[:, end]), weight[:d], None if bias is None else bias[:d])[:rows]
    # One query: sums of products, since a product of so few rows rounds differently from batch to batch.
    score = (split(q, 1)[0] * k[:, :, : end + 1]).sum(-1) * (d // heads) ** -0.5
    out = (score.softmax(-1)[..., None] * v[:, :, : end + 1]).sum(2)
    return linear(filled_up(out.reshape(rows, d)), *_output(attn))


def _output(attn: nn.MultiheadAttention) -> tuple[Tensor, Tensor | None]:
    return attn.out_proj.weight, attn.out_proj.bias
