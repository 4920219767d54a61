"""What the methods share that project soft prompts onto tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pez_fast.functional import nearest_token
from pez_fast.table import TokenTable


def nearest_ids(soft: Tensor, table: TokenTable, impl: str, settings: str, updates: Callable[[], int]) -> Tensor:
    """Returns the nearest tokens (R, L) int64 of soft prompts (R, L, d), by cosine.

    Args:
        impl: the implementation of the nearest-token search.
        settings: the options that made the soft prompts what they are, for the error.
        updates: a function that returns how many updates the prompts have had, for the error.

    Raises:
        ValueError: on a CPU, soft prompts are not finite.
    """
    try:
        return nearest_token(soft, table, impl)[0]
    except ValueError as error:
        if soft.isfinite().all():
            raise
        raise ValueError(
            f"the search diverged with {settings}: soft prompts are not finite after {updates()} updates"
        ) from error


def descended(ids: Tensor, gradient: Tensor, table: TokenTable, lr: float) -> Tensor:
    """Returns e - lr ∇ (R, L, d), float32 or wider: the embeddings e of ids (R, L) and their gradient (R, L, d)."""
    embeds = table.weight[ids].to(torch.promote_types(table.dtype, torch.float32))
    return embeds - lr * gradient.to(embeds.dtype)
