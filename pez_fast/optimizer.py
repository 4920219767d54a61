"""The PEZ update: AdamW on soft prompts, with the gradient at their nearest tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pez_fast.config import LEARNING_RATE, WEIGHT_DECAY
from pez_fast.functional import kind_of, project
from pez_fast.table import TokenTable


class PEZ(torch.optim.AdamW):
    """AdamW over soft prompts with the projection of Wen et al. 2023 (algorithm 1).

        hard, ids = opt.project()      # the nearest tokens' embeddings
        loss(hard).backward()          # the gradient at the tokens ...
        opt.step(); opt.zero_grad()    # ... moves the soft prompts

    Args:
        prompts: (R, L, d) float32 or float64 leaf tensor; PEZ switches its `requires_grad` on.
        table: a `TokenTable` of d dimensions on the same device.
        lr, weight_decay, betas, eps: as in `torch.optim.AdamW`; the defaults of lr and weight_decay are the paper's.
        impl: the implementation of the projection.
        **adamw: passed on to `torch.optim.AdamW` (`fused`, `capturable`, …); `fused` is on by default.

    PEZ is a `torch.optim.Optimizer`: every learning-rate schedule works on it. `state_dict` holds the optimiser's state
    only; save the tensor `prompts` beside it.

    Raises:
        TypeError: `prompts` is no tensor of one of these dtypes, or `table` is no `TokenTable`.
        ValueError: `prompts` is no leaf, has another shape, or is on another device than the table.
    """

    def __init__(
        self,
        prompts: Tensor,
        table: TokenTable,
        lr: float = LEARNING_RATE,
        weight_decay: float = WEIGHT_DECAY,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        impl: str = "auto",
        **adamw: Any,
    ) -> None:
        if not isinstance(prompts, Tensor) or prompts.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"prompts must be a float32 or float64 tensor; got {kind_of(prompts)}")
        if not isinstance(table, TokenTable):
            raise TypeError(f"table must be a TokenTable; got {kind_of(table)}")
        if prompts.device != table.device:
            raise ValueError(f"prompts must be on {table.device} as the table is; got {prompts.device}")
        if prompts.ndim != 3 or prompts.shape[-1] != table.dim:
            raise ValueError(f"prompts must be (R, L, {table.dim}) to match the table; got {tuple(prompts.shape)}")
        if not prompts.is_leaf:
            raise ValueError("prompts must be a leaf tensor; got one with a grad_fn (call .detach() first)")
        if not any(adamw.get(k) for k in ("foreach", "differentiable")):
            adamw.setdefault("fused", True)
        super().__init__([prompts.requires_grad_()], lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, **adamw)
        self.prompts, self.table, self.impl = prompts, table, impl

    def select(self, rows: Tensor) -> PEZ:
        """Returns a new optimiser for some of the prompts, with their part of the state.

        Args:
            rows: (R',) int64 indices of prompts.
        """
        settings = {
            k: v for k, v in self.param_groups[0].items() if k in self.defaults and k != "decoupled_weight_decay"
        }
        selected = PEZ(self.prompts.detach()[rows], self.table, impl=self.impl, **settings)
        state = self.state[self.prompts]
        if state:
            moments = {name: value[rows] for name, value in state.items() if name != "step"}
            selected.state[selected.prompts] = {"step": state["step"].clone(), **moments}
        return selected

    def project(self) -> tuple[Tensor, Tensor]:
        """Projects the prompts onto their nearest tokens.

        Returns:
            hard (R, L, d) in the table's dtype, whose gradient passes straight through to the prompts, and ids (R, L)
            int64.

        Raises:
            ValueError: a prompt is not finite.
            RuntimeError: the implementation cannot run here.
        """
        return project(self.prompts, self.table, self.impl)
