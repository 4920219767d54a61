"""What the tasks PEZ is used for can be told, and what they tell while they run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pez_fast.encoders.precision import DTYPES


@dataclass(frozen=True)
class Progress:
    """What a callback sees: after `step` of `steps` updates, the best prompt of each target and its score.

    Where the targets do not fit into one batch, `step` counts the part of all updates that is done, and targets that wait have
    an empty prompt and a score of NaN. `polished` counts the rounds of polishing in the same way, of `Options.polish`.
    """

    step: int
    steps: int
    prompts: list[str]
    scores: list[float]
    polished: int = 0


@dataclass(frozen=True)
class Options:
    """The options that every task takes.

    Attributes:
        prompt_len: number of learned tokens.
        steps: updates of the PEZ search.
        seed: of the random tokens that the search begins at; the same for every target, whatever else is in the batch.
        lr, weight_decay: of AdamW.
        restarts: prompts tried for each target, in the same batch; the best by `text_score` is returned.
        polish: rounds behind the search in which single tokens of the best prompt are exchanged (see `engine.polish`); 0 leaves
            it as PEZ found it.
        top_k: how many different prompts of each target are returned, in `PromptResult.top`.
        prefix, suffix: fixed texts around the learned tokens.
        init: a text whose tokens the search begins at (the places that it leaves are drawn).
        banned: words and ids that must not be learned.
        vocabulary: "stable", the tokens that survive being written out and read again, or "full".
        patience: a target ends after so many steps without improvement.
        callback: called with a `Progress` every `every` steps; returning True ends the search.
        batch_size: prompts (targets times restarts) learned at once; by default as many as fit into memory. No result depends on it.
        impl: implementation of the projection.
        dtype: of the text tower during the search: "float32", "bfloat16" or "float16"; by default bfloat16 where the device
            multiplies in it, the model is float32 and (on a CPU) its tower wider than 256, else the model's. Soft prompts and
            optimiser are float32 or wider, and the scores that decide and are returned are those of the model as it was loaded.
        compile: run the tower through `torch.compile` in the search. It takes a minute first, and a result can then depend on
            the batch in its last bit, and so on what else is learned.
    """

    prompt_len: int = 16
    steps: int = 3000
    seed: int = 0
    lr: float = 0.1
    weight_decay: float = 0.1
    restarts: int = 1
    polish: int = 32
    top_k: int = 1
    prefix: str = ""
    suffix: str = ""
    init: str | None = None
    banned: Sequence[str | int] = ()
    vocabulary: str = "stable"
    patience: int | None = None
    callback: Callable[[Progress], object] | None = None
    every: int = 50
    batch_size: int | None = None
    impl: str = "auto"
    dtype: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt_len", "steps", "restarts", "top_k", "every", "patience", "batch_size"):
            value = getattr(self, name)
            if name in ("patience", "batch_size") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        if not isinstance(self.polish, int) or isinstance(self.polish, bool) or self.polish < 0:
            raise ValueError(f"polish must be an integer, not negative; got {self.polish!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or None; got {self.dtype!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1; got {self.seed!r}")
        for name, least in (("lr", 0.0), ("weight_decay", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
                raise ValueError(f"{name} must be a finite number, not negative; got {value!r}")


def options_from(given: dict[str, Any]) -> Options:
    """Raises: TypeError: no such option. ValueError: a value that it cannot have."""
    known = [f.name for f in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(known)}")
    return Options(**given)
