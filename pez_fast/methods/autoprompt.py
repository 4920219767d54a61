"""AutoPrompt: exchanges at one random position, and its variant with projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast.engine import Evaluate, Evaluation, TensorState
from pez_fast.methods.checks import check_counts, check_numbers
from pez_fast.methods.draws import Draws
from pez_fast.methods.exchange import COST_OF_AN_EXCHANGE, ExchangeState, best_exchange, num_top
from pez_fast.methods.gains import top_gain_tokens
from pez_fast.methods.projection import descended, nearest_ids
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class AutoPromptMethod:
    """Each step tries exchanges of the token at one random position and takes the best one if it lowers the loss (Shin
    et al. 2020, section 2.2).

    The step tries the `top_k` tokens with the largest gain by the gradient at the current tokens. The position depends
    only on the seed and the number of the step. The current prompt and its exchanges are evaluated on the same
    examples, those of the step.

    Args:
        top_k: the number of tokens that a step tries; the default is that of the paper's code.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    top_k: int = 10

    def __post_init__(self) -> None:
        check_counts(self, "top_k")

    @property
    def relative_cost(self) -> float:
        """The number of PEZ steps that take as long as one step of this method."""
        return 1 + COST_OF_AN_EXCHANGE * self.top_k

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> ExchangeState:
        """Returns the state of prompts that begin at ids (R, L) int64."""
        return ExchangeState.at(TensorState(ids=ids), table, seed, Draws(seed, 1, ids.shape[1]))

    def step(self, state: ExchangeState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        ids, table = state.tensors["ids"], evaluate.table
        current = evaluate(ids, gradient=update)
        if current.gradient is None:
            return current
        row, position = torch.arange(len(ids), device=ids.device)[:, None], torch.stack(state.drawn).to(ids.device)
        count = num_top(table, self.top_k)
        found = top_gain_tokens(-current.gradient[row, position], ids[row, position], table, state.tokens, count)
        candidates = ids[:, None].repeat(1, count, 1)
        candidates[row, torch.arange(count, device=ids.device), position] = found[:, 0]
        state.move(best_exchange(current, candidates, evaluate))
        return current


@dataclass(frozen=True)
class AutoPromptSGDMethod:
    """Each step takes the tokens nearest to e - lr ∇, where e are the embeddings of the current tokens and ∇ is the
    gradient there.

    Wen et al. 2023 (section 4) compare with it under the name AutoPrompt_SGD. The projection feeds back: the tokens'
    embeddings are the next iterate, so a token stays where lr ∇ does not reach another one. The nearest token is that
    of the largest cosine.

    Args:
        lr: the learning rate. The best one depends on the model, since lr ∇ must reach from token to token; the default
            was the best of 0.1 to 1000 on the bundled model.
        impl: the implementation of the nearest-token search.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    lr: float = 10.0
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, "lr")

    def capturable(self, device: torch.device) -> bool:
        """Returns whether a step on the device can be captured as a CUDA graph."""
        return ops.capturable(self.impl, device)

    def init(self, ids: Tensor, table: TokenTable, seed: int = 0) -> TensorState:
        """Returns the state of prompts that begin at ids (R, L) int64; `seed` is not used."""
        return TensorState(ids=ids.clone(), step=torch.zeros_like(ids[:, 0]))

    def step(self, state: TensorState, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates the prompts and, with `update`, makes one step; see `Method`."""
        current = evaluate(state["ids"].clone(), gradient=update)
        if current.gradient is not None:
            soft = descended(current.ids, current.gradient, evaluate.table, self.lr)
            settings = f"lr={self.lr!r}"
            state["step"] += 1
            found = nearest_ids(soft, evaluate.table, self.impl, settings, lambda: int(state["step"].max()))
            state["ids"].copy_(found)  # in place, as a captured step needs it
        return current
