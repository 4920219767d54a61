"""The three plugs of a search: a model, an objective and a method.

Any class with these attributes fits; nothing needs to inherit. Shapes: R prompts (rows) of L tokens of d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pez_fast.table import TokenTable

Outputs = dict[str, Tensor]  # of a model, rows first: "features" (R, D), "logits" (R, T, V), …


class Vocabulary(Protocol):
    """A model's tokens as text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


class PromptModel(Protocol):
    """A frozen model that prompts are learned for.

    Attributes:
        name: shown in results.
        device, dtype: of its weights.
        vocabulary: its tokens as text.

    The tasks on images also need `preprocess`, `encode_images` and `encode_pixels`, as `ClipEncoder` has them; `distill` needs
    `encode_texts` and `context_length`; a data set needs `fingerprint`.
    """

    name: str
    vocabulary: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def table(self, vocabulary: str = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """The tokens that may be learned; see `SearchConfig` for both arguments."""
        ...

    def bind(self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None) -> BoundModel:
        """The model with prompt_len slots between two fixed texts; `dtype`: of its arithmetic, default the model's own."""
        ...


class BoundModel(Protocol):
    """A model bound to a template: what stands around the learned tokens.

    Attributes:
        bytes_per_prompt: an estimate of the memory that one prompt takes, forward and backward.
    """

    bytes_per_prompt: int

    def __call__(self, embeds: Tensor, ids: Tensor) -> Outputs:
        """embeds (R, L, d) of the tokens ids (R, L) -> outputs; each row's must not depend on the other rows."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The prompt that a user types in: the learned tokens as text, between the fixed texts."""
        ...

    def from_text(self, texts: Sequence[str]) -> Outputs:
        """The outputs for such prompts, typed in and tokenised afresh."""
        ...


class Objective(Protocol):
    """What is minimised: a loss for each row, so that objectives add up (`WeightedSum`)."""

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the prompts ids (R, L) -> loss (R,), differentiable, and score (R,), the higher the better."""
        ...

    def select(self, rows: Tensor) -> Objective:
        """The same for some of its rows, rows (R',) int64, which may repeat."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Of prompts ids (R, L): loss (R,), score (R,) and, where it was asked for, the gradient (R, L, d) of each row's loss by
    its embeddings, with zeros in place of what is not finite."""

    ids: Tensor
    loss: Tensor
    score: Tensor
    gradient: Tensor | None = None


class Evaluate(Protocol):
    """What a method evaluates prompts with; `table` holds the tokens that may be learned."""

    table: TokenTable

    def __call__(
        self, ids: Tensor, gradient: bool = False, owner: Tensor | None = None, embeds: Tensor | None = None
    ) -> Evaluation:
        """Evaluate prompts ids (N, L); see `Evaluator`."""
        ...


class State(Protocol):
    """What a method remembers of its prompts, a row for each. `TensorState` is one."""

    def select(self, rows: Tensor) -> State:
        """Of some prompts, rows (R',) int64 ascending."""
        ...

    def join(self, other: Any) -> State:
        """Of these prompts, and behind them those of `other`."""
        ...


class Method(Protocol):
    """How the ids of prompts move.

    A method may say with `capturable(device) -> bool` that its step can be captured as a CUDA graph; without, none is. It may say
    with `relative_cost` how many steps of PEZ take as long as one of its own (default 1), for estimates of the time left.
    """

    def init(self, ids: Tensor, table: TokenTable, seed: int) -> Any:
        """The `State` of prompts that begin at ids (R, L)."""
        ...

    def step(self, state: Any, evaluate: Evaluate, update: bool) -> Evaluation:
        """Evaluate one set of ids for each prompt and, where `update`, move the state on in place.

        A search of n steps calls it n + 1 times, the last time without an update. Rows must not depend on one another,
        and random draws only on the seed and a row's own number of steps: they share batches by chance.
        """
        ...
