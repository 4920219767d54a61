"""A causal text tower, run from its own parameters for the end token's feature alone.

Same as `tower.transformer(x, attn_mask)` and then `ln_final` at the end token, with less work: it runs the last block
for that one position, and every linear layer sees one contiguous matrix (torch's MultiheadAttention multiplies a
transposed view, position by position), by the faster library.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pez_fast._shared.linear import FrozenLinear
from pez_fast._shared.rows import MIN_ROWS, ROW_MULTIPLE, pad_rows


def positions(end: int, context: int, dtype: torch.dtype) -> int:
    """Returns how many positions to run if `end` is the last that matters.

    The number is larger than `end + 1` if that many rows round alike.
    """
    length = end + 1 + -(end + 1) % ROW_MULTIPLE if dtype == torch.float64 else max(end + 1, MIN_ROWS)
    return min(length, context)


class CausalTower:
    """The blocks of a frozen causal text tower.

    Args:
        tower: an open_clip text tower. Blocks other than open_clip's plain ones are called as they are.
    """

    def __init__(self, tower: Any) -> None:
        self.tower = tower
        self.blocks = [_Block(block) for block in tower.transformer.resblocks] if _plain(tower.transformer) else None

    def rounds_alike(self, dtype: torch.dtype) -> bool:
        """Whether a CPU rounds the features of a prompt alike in every batch."""
        return self.blocks is not None and dtype != torch.float64

    def eos_feature(self, x: Tensor, end: int) -> Tensor:
        """Returns the features after `ln_final` at the position `end`.

        Args:
            x: (R, S, d) embeddings with positions added.

        Returns:
            (R', d) with R' >= R; the rows from R on are padding.
        """
        if self.blocks is None:
            mask = self.tower.attn_mask[: x.shape[1], : x.shape[1]]
            return self.tower.ln_final(self.tower.transformer(x, attn_mask=mask)[:, end])
        for block in self.blocks[:-1]:
            x = block(x)
        return self.tower.ln_final(self.blocks[-1].forward_at(x, end))


def _plain(transformer: Any) -> bool:
    """Returns whether all blocks are open_clip's plain ones."""
    from open_clip.transformer import ResidualAttentionBlock

    return all(
        type(block) is ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_weight is not None
        and block.attn.bias_k is None
        and not block.attn.add_zero_attn
        for block in transformer.resblocks
    )


class _Block:
    """One residual block: causal self-attention and a perceptron."""

    def __init__(self, block: Any) -> None:
        attn, mlp = block.attn, block.mlp
        self.block, self.heads, d = block, attn.num_heads, attn.embed_dim
        bias = attn.in_proj_bias
        self.qkv = FrozenLinear(attn.in_proj_weight, bias)
        self.q = FrozenLinear(attn.in_proj_weight[:d], None if bias is None else bias[:d])
        self.kv = FrozenLinear(attn.in_proj_weight[d:], None if bias is None else bias[d:])
        self.out = FrozenLinear(attn.out_proj.weight, attn.out_proj.bias)
        self.up = FrozenLinear(mlp.c_fc.weight, mlp.c_fc.bias)
        self.down = FrozenLinear(mlp.c_proj.weight, mlp.c_proj.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the block's output (R, S, d) for x (R, S, d)."""
        product = self.qkv(self.block.ln_1(x))
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            # torch's attention is four times slower backward in bfloat16
            product = product.float()
        q, k, v = self._split(product, 3)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._rest(x, attended.transpose(1, 2).reshape(x.shape).to(x.dtype))

    def forward_at(self, x: Tensor, end: int) -> Tensor:
        """Returns the block's output (R', d) at the position `end`; the rows from R on are padding."""
        rows, _, d = x.shape
        normed = self.block.ln_1(x)
        k, v = self._split(self.kv(normed), 2)[:, :, :, : end + 1]
        q = self._split(self.q(pad_rows(normed[:, end], MIN_ROWS)[:, None]), 1)[0, :rows]
        # One query takes sums of products: a matrix product of so few rows rounds differently from batch to batch.
        q, k, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k, v))
        score = (q * k).sum(-1) * (d // self.heads) ** -0.5
        attended = (score.softmax(-1)[..., None] * v).sum(2).to(x.dtype)
        return self._rest(pad_rows(x[:, end], MIN_ROWS), pad_rows(attended.reshape(rows, d), MIN_ROWS))

    def _split(self, t: Tensor, parts: int) -> Tensor:
        """Returns t (R, S, parts * d) as (parts, R, heads, S, d / heads)."""
        rows, length, width = t.shape
        return t.view(rows, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """Returns the block's output from its input x and the result of the attention."""
        x = x + self.block.ls_1(self.out(attended))
        return x + self.block.ls_2(self.down(self.block.mlp.gelu(self.up(self.block.ln_2(x)))))
