"""PEZ: soft prompts, their nearest tokens, and AdamW by the gradient taken there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast.config import LEARNING_RATE, WEIGHT_DECAY
from pez_fast.engine import Evaluate, Evaluation
from pez_fast.functional import nearest_token
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class PEZMethod:
    """Algorithm 1 of Wen et al. 2023: each step evaluates the projection of the soft prompts and updates them by AdamW.

    Args:
        lr, weight_decay: of AdamW; the defaults are the paper's.
        impl: implementation of the search for the nearest tokens.
    """

    lr: float = LEARNING_RATE
    weight_decay: float = WEIGHT_DECAY
    impl: str = "auto"

    def capturable(self, device: torch.device) -> bool:
        return ops.capturable(self.impl, device)

    def init(self, ids: Tensor, table: TokenTable, seed: int = 0) -> PEZState:
        """Soft prompts at the embeddings of ids (R, L), in float32 or wider."""
        soft = table.weight[ids].to(torch.promote_types(table.dtype, torch.float32))
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "impl": self.impl}
        return PEZState([PEZ(soft, table, **options, capturable=soft.is_cuda)])  # type: ignore[arg-type]

    def step(self, state: PEZState, evaluate: Evaluate, update: bool) -> Evaluation:
        soft = [opt.prompts.detach() for opt in state.optimizers]
        ids, _ = nearest_token(torch.cat(soft) if len(soft) > 1 else soft[0], evaluate.table, self.impl)
        found = evaluate(ids, gradient=update)
        if found.gradient is not None:  # straight through: the gradient at the tokens is that of the soft prompts
            gradients = found.gradient.to(soft[0].dtype).split([len(s) for s in soft])
            for opt, gradient in zip(state.optimizers, gradients, strict=True):
                opt.prompts.grad = gradient
                opt.step()
                opt.prompts.grad = None
        return found


@dataclass(frozen=True)
class PEZState:
    """Soft prompts with their optimisers, one optimiser for those that have made the same number of steps."""

    optimizers: Sequence[PEZ]

    def select(self, rows: Tensor) -> PEZState:
        kept, start = [], 0
        for opt in self.optimizers:
            own = rows[(rows >= start) & (rows < start + len(opt.prompts))] - start
            start += len(opt.prompts)
            if len(own):
                kept.append(opt if len(own) == len(opt.prompts) else opt.select(own))
        return PEZState(kept)

    def join(self, other: PEZState) -> PEZState:
        return PEZState([*self.optimizers, *other.optimizers])
