"""FluentPrompt: projected Langevin dynamics over the embeddings of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast.engine import Evaluate, Evaluation, TensorState
from pez_fast.methods.checks import check_counts, check_numbers
from pez_fast.methods.draws import DrawnState, Draws
from pez_fast.methods.projection import descended, nearest_ids
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class FluentPromptMethod:
    """Each step takes the tokens nearest to e - lr ∇ + sqrt(2 lr β) z (Shi et al. 2022, "Toward Human Readable Prompt
    Tuning", section 3).

    Here e are the embeddings of the current tokens, ∇ is the gradient there, and z is standard normal. β falls
    geometrically from `beta_start` to `beta_end` over `steps` updates and stays there. The nearest token is that of the
    largest cosine. The paper's fluency constraint is a term of the objective, which the option `terms` takes; this
    method has none.

    The noise depends only on the seed and the number of the step; prompts of equal seed have the same noise in the same
    step.

    Args:
        steps: updates over which β falls, as a rule the number of steps of the stage.
        lr: the learning rate. The best one depends on the model; the default is that of `AutoPromptSGDMethod`, and was
            among the best of 0.03 to 30 on the bundled model.
        beta_start, beta_end: β at the first and at the last of the `steps` updates; the defaults are the paper's.
        impl: the implementation of the nearest-token search.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    steps: int
    lr: float = 10.0
    beta_start: float = 1.0
    beta_end: float = 0.0001
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_counts(self, "steps")
        check_numbers(self, "lr", "beta_start", "beta_end")
        for name in ("beta_start", "beta_end"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be positive, as β falls geometrically; got {getattr(self, name)!r}")

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> DrawnState:
        """Returns the state of prompts that begin at ids (R, L) int64."""
        rows = len(ids)
        return DrawnState(TensorState(ids=ids), [seed] * rows, [0] * rows, {seed: Draws(seed, 1, 2**63 - 1)})

    def beta(self, step: int) -> float:
        """Returns β of the update that a prompt makes after `step` updates."""
        part = min(1.0, step / max(1, self.steps - 1))
        return self.beta_start * (self.beta_end / self.beta_start) ** part

    def step(self, state: DrawnState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        current = evaluate(state.tensors["ids"], gradient=update)
        if current.gradient is not None:
            soft = descended(current.ids, current.gradient, evaluate.table, self.lr)
            soft += self._noise(state, soft)
            settings = f"lr={self.lr!r}, beta_start={self.beta_start!r} and beta_end={self.beta_end!r}"
            made = state.steps
            state.move(nearest_ids(soft, evaluate.table, self.impl, settings, lambda: max(made) + 1))
        return current

    def _noise(self, state: DrawnState, soft: Tensor) -> Tensor:
        """Returns sqrt(2 lr β) z (R, L, d), in the dtype and on the device of `soft` (R, L, d)."""
        found: dict[tuple[int, int], Tensor] = {}
        keys = list(zip(state.seeds, state.steps, strict=True))
        for key, drawn in zip(keys, state.drawn, strict=True):
            if key not in found:
                generator = torch.Generator().manual_seed(int(drawn))
                z = torch.randn(soft.shape[1:], generator=generator, dtype=soft.dtype)
                found[key] = math.sqrt(2 * self.lr * self.beta(key[1])) * z
        return torch.stack([found[key] for key in keys]).to(soft.device)
