"""The three plugs of a search: a model, an objective and a method.

Any class with these attributes fits; nothing needs to inherit from them. Shapes: R prompts (rows) of L tokens, with
embeddings of d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pez_fast.table import TokenTable

Outputs = dict[str, Tensor]  # a model's outputs, rows first: "features" (R, D), "logits" (R, T, V), …


class Vocabulary(Protocol):
    """Converts between a model's tokens and text."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        ...


class PromptModel(Protocol):
    """A frozen model that prompts are learned for.

    Attributes:
        name: the name that results show.
        device, dtype: the device and the dtype of its weights.
        vocabulary: a `Vocabulary`.

    The tasks on images also need `preprocess`, `encode_images` and `encode_pixels`, as `ClipEncoder` has them.
    `distill` needs `encode_texts` and `context_length`. A data set needs `fingerprint`.
    """

    name: str
    vocabulary: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def table(self, vocabulary: str = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """Returns the table of the tokens that may be learned; `SearchConfig` explains both arguments."""
        ...

    def bind(self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None) -> BoundModel:
        """Returns the model with `prompt_len` slots between two fixed texts.

        Args:
            dtype: the dtype of the bound model's arithmetic. Default: the model's own.
        """
        ...


class BoundModel(Protocol):
    """A model bound to a template, the text around the learned tokens.

    Attributes:
        bytes_per_prompt: an estimate of the bytes that one prompt takes, forward and backward.
    """

    bytes_per_prompt: int

    def __call__(self, embeds: Tensor, ids: Tensor) -> Outputs:
        """Returns the outputs for prompts; a row's outputs must not depend on the other rows.

        Args:
            embeds: (R, L, d) embeddings of the learned tokens.
            ids: (R, L) int64, these tokens.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Returns the prompt that a user types in: the learned tokens as text, between the fixed texts."""
        ...

    def from_text(self, texts: Sequence[str]) -> Outputs:
        """Returns the outputs for such prompts, which it tokenises as text."""
        ...


class StochasticModel(Protocol):
    """A `BoundModel` that runs over examples, a few at each step; it has these attributes besides.

    Attributes:
        stochastic: True. A call then takes a third argument, draws (R, 2) int64 on the CPU: each row's seed and the
            number of its step, which alone decide on the row's examples. Without it, a row's outputs depend on the row
            alone.
        held_out: a function of embeddings and ids, as `BoundModel.__call__`, whose outputs on held-out examples score
            the prompts; or None.
        held_out_every: steps between two such scores; the first and the last step always have one.
    """

    stochastic: bool
    held_out: Callable[[Tensor, Tensor], Outputs] | None
    held_out_every: int

    def __call__(self, embeds: Tensor, ids: Tensor, draws: Tensor | None = None) -> Outputs: ...


class Objective(Protocol):
    """What a search minimises: a loss for each row, so that objectives can be added (`WeightedSum`).

    A method lowers the loss. The score chooses the prompt that is returned.
    """

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss (R,), differentiable, and the score (R,), higher is better.

        Args:
            outputs: the model's outputs for the prompts, rows first.
            ids: (R, L) int64, the prompts.
        """
        ...

    def select(self, rows: Tensor) -> Objective:
        """Returns the objective of some of its rows; `rows` (R',) int64 may repeat a row."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of prompts gives.

    Attributes:
        ids: (R, L) int64, the prompts.
        loss: (R,), which methods compare; losses of different steps need not compare.
        score: (R,), higher is better, which chooses the prompt that is returned.
        gradient: (R, L, d), the gradient of each row's loss by its embeddings, 0 where it is not finite; None if the
            method did not request it.
    """

    ids: Tensor
    loss: Tensor
    score: Tensor
    gradient: Tensor | None = None


class Evaluate(Protocol):
    """What a method evaluates prompts with.

    Attributes:
        table: the tokens that may be learned.
        held_out: whether the engine scores prompts itself, on held-out examples, so that a method need not.
    """

    table: TokenTable
    held_out: bool

    def __call__(
        self, ids: Tensor, gradient: bool = False, owner: Tensor | None = None, embeds: Tensor | None = None
    ) -> Evaluation:
        """Evaluates prompts ids (N, L); `Evaluator` explains the arguments."""
        ...


class State(Protocol):
    """What a method remembers of its prompts, with a row for each prompt. `TensorState` is one."""

    def select(self, rows: Tensor) -> State:
        """Returns the state of some prompts; `rows` (R',) int64 ascend."""
        ...

    def join(self, other: Any) -> State:
        """Returns the state of these prompts, followed by those of `other`."""
        ...


class Method(Protocol):
    """Moves the ids of prompts.

    A method may have `capturable(device) -> bool`, which says whether its step can be captured as a CUDA graph; without
    it, no step is captured. It may have `relative_cost`, the number of PEZ steps that take as long as one of its own
    steps (default 1), for estimates of the time left. With `keeps_state = True`, its state has
    `soft_prompts() -> (R, L, d)`, and the engine keeps those of the rows that end.
    """

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> Any:
        """Returns the `State` of prompts that begin at ids (R, L) int64."""
        ...

    def step(self, state: Any, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluates one set of ids for each prompt and, with `update`, moves the state on in place.

        A search of n steps calls `step` n + 1 times, the last time without an update. A row must not depend on the
        other rows, and random draws must depend only on the row's own seed and number of steps: which prompts share a
        batch, also of other seeds, is chance. All evaluations that one step makes for a row are of the same examples.

        Returns:
            The `Evaluation` of the ids (R, L).
        """
        ...
