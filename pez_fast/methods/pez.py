"""PEZ: soft prompts that AdamW moves by the gradient at their nearest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast._shared.devices import graphs_are_possible
from pez_fast.config import LEARNING_RATE, WEIGHT_DECAY
from pez_fast.engine import Evaluate, Evaluation
from pez_fast.functional import nearest_token
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class PEZMethod:
    """Each step evaluates the projection of the soft prompts and updates them by AdamW (Wen et al. 2023, algorithm 1).

    Args:
        lr, weight_decay: options of AdamW; the defaults are the paper's.
        impl: the implementation of the nearest-token search.
    """

    lr: float = LEARNING_RATE
    weight_decay: float = WEIGHT_DECAY
    impl: str = "auto"

    def capturable(self, device: torch.device) -> bool:
        """Returns whether a step on the device can be captured as a CUDA graph."""
        return ops.capturable(self.impl, device)

    def init(self, ids: Tensor, table: TokenTable, seed: int = 0) -> PEZState:
        """Returns soft prompts, float32 or wider, at the embeddings of ids (R, L) int64; `seed` is not used."""
        soft = table.weight[ids].to(torch.promote_types(table.dtype, torch.float32))
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "impl": self.impl}
        return PEZState([PEZ(soft, table, **options, capturable=graphs_are_possible(soft.device))])  # type: ignore[arg-type]

    def step(self, state: PEZState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the nearest tokens and, with `update`, makes one step of AdamW; see `Method`."""
        soft = [opt.prompts.detach() for opt in state.optimizers]
        joined = torch.cat(soft) if len(soft) > 1 else soft[0]
        try:
            ids, _ = nearest_token(joined, evaluate.table, self.impl)
        except ValueError as error:
            if joined.isfinite().all():
                raise
            made = max(int(opt.state[opt.prompts]["step"]) for opt in state.optimizers)
            settings = f"lr={self.lr!r} and weight_decay={self.weight_decay!r}"
            raise ValueError(
                f"the search diverged with {settings}: soft prompts are not finite after {made} updates"
            ) from error
        evaluation = evaluate(ids, gradient=update)
        if evaluation.gradient is not None:  # straight through: the soft prompts take the gradient at the tokens
            gradients = evaluation.gradient.to(soft[0].dtype).split([len(s) for s in soft])
            for opt, gradient in zip(state.optimizers, gradients, strict=True):
                opt.prompts.grad = gradient
                opt.step()
                opt.prompts.grad = None
        return evaluation


@dataclass(frozen=True)
class PEZState:
    """Soft prompts with their optimisers.

    Attributes:
        optimizers: one `PEZ` for the prompts that have made the same number of steps; their rows follow one another.
    """

    optimizers: Sequence[PEZ]

    def select(self, rows: Tensor) -> PEZState:
        """Returns the state of some prompts; `rows` (R',) int64 ascend."""
        selected, start = [], 0
        for opt in self.optimizers:
            local_rows = rows[(rows >= start) & (rows < start + len(opt.prompts))] - start
            start += len(opt.prompts)
            if len(local_rows):
                selected.append(opt if len(local_rows) == len(opt.prompts) else opt.select(local_rows))
        return PEZState(selected)

    def join(self, other: PEZState) -> PEZState:
        """Returns the state of these prompts, followed by those of `other`."""
        return PEZState([*self.optimizers, *other.optimizers])
