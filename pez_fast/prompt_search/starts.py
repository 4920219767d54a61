"""The tokens that a search begins at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pez_fast.config import SearchConfig
from pez_fast.engine import PromptModel


def first_ids(allowed: Tensor, model: PromptModel, config: SearchConfig, seed: int) -> Tensor:
    """Returns ids (restarts, prompt_len) int64, drawn from the seed and the number of the restart alone.

    Raises:
        ValueError: `init` has no token, more than `prompt_len`, or one that is banned.
    """
    ids = allowed.nonzero()[:, 0].cpu()
    drawn = []
    for restart in range(config.restarts):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + restart) % 2**63)
        drawn.append(ids[torch.randint(len(ids), (config.prompt_len,), generator=generator)])
    init_ids = torch.stack(drawn)
    if config.init is not None:
        init = model.vocabulary.encode(config.init)
        for entry in config.banned:
            if entry in init if isinstance(entry, int) else entry.lower() in config.init.lower():
                raise ValueError(f"init holds {entry!r}, which is banned; got {config.init!r}")
        if not 0 < len(init) <= config.prompt_len:
            raise ValueError(
                f"init must be 1 to {config.prompt_len} tokens (prompt_len) long; {config.init!r} has {len(init)}"
            )
        init_ids[:, : len(init)] = torch.tensor(init)
    return init_ids


def begin(
    allowed: Tensor,
    model: PromptModel,
    config: SearchConfig,
    seed: int,
    count: int,
    inits: Sequence[str | None] | None = None,
) -> Tensor:
    """Returns the ids (count * restarts, prompt_len) int64 that some targets begin at, each as if it were alone.

    Args:
        inits: a text for each target, in place of the option `init`; None for random tokens.
    """
    if inits is None:
        return first_ids(allowed, model, config, seed).repeat(count, 1)
    return torch.cat([first_ids(allowed, model, replace(config, init=text), seed) for text in inits])
