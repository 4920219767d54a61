"""First-order gains: by how much the loss would fall, by the gradient, if another token stood at a position."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast._shared.linear import linear
from pez_fast._shared.rows import MIN_ROWS, pad_rows
from pez_fast.table import TokenTable

_MAX_GAINS = 1 << 24  # the most gains of tokens in memory at once


def top_gain_tokens(ascent: Tensor, ids: Tensor, table: TokenTable, tokens: Tensor, count: int) -> Tensor:
    """Returns the tokens with the largest first-order gain at each position.

    The gain of a token is the product of its embedding with `ascent` (Shin et al. 2020, equation 2). The token that
    stands at a position is left out.

    Args:
        ascent: (R, L, d), the negative gradient of the loss by the embeddings.
        ids: (R, L) int64, the tokens that stand there.
        table: the tokens that may be learned.
        tokens: (K, d), the embeddings of `table.ids`.
        count: the number of tokens for each position.

    Returns:
        ids (R, L, count) int64, the largest gain first.
    """
    flat, columns = ascent.reshape(-1, ascent.shape[-1]).to(tokens.dtype), torch.searchsorted(table.ids, ids.flatten())
    found = []
    rows = max(1, _MAX_GAINS // len(tokens))
    for part, column in zip(flat.split(rows), columns.split(rows), strict=True):
        gain = linear(pad_rows(part, MIN_ROWS), tokens)[: len(part)]
        gain.scatter_(1, column[:, None], -torch.inf)
        found.append(table.ids[gain.topk(count, 1).indices])
    return torch.cat(found).view(*ids.shape, count)
