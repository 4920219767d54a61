"""The options of a search and what a callback sees of it.

`SearchConfig` is the only home of the options' defaults and explanations: the signatures and docstrings of the tasks,
the options of the command line and README's table are made from it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, Literal, TypedDict, TypeVar

LEARNING_RATE, WEIGHT_DECAY = 0.1, 0.1  # of AdamW, as in the paper
DTYPES = ("float32", "bfloat16", "float16", "float64")
Vocabulary = Literal["stable", "full"]
POSITIONAL = ("prompt_len", "steps", "seed")  # options that may also be passed by position
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """What a callback sees of a running search.

    If the targets do not fit into one batch, `step` and `refined` count as if the updates of all targets were made one
    after the other, and a target that is not begun has an empty prompt and a score of NaN.

    Attributes:
        step: updates made in the first stage of the search.
        steps: updates that the first stage makes in all.
        prompts: the best prompt of each target so far.
        scores: the score of each of these prompts.
        refined: updates made in the later stages.
    """

    step: int
    steps: int
    prompts: list[str]
    scores: list[float]
    refined: int = 0


def setting(default: Any, explanation: str) -> Any:
    """Returns a field of `SearchConfig` with its default and its explanation."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True)
class SearchConfig:
    """The options that every task takes.

    Raises:
        ValueError: an option has a value that it cannot have; the message names the option and the value.
    """

    prompt_len: int = setting(16, "Number of learned tokens.")
    steps: int = setting(3000, "Updates of the PEZ search.")
    seed: int = setting(
        0, "Seed of the random tokens that the search begins at; all targets begin at the same tokens, in any batch."
    )
    lr: float = setting(LEARNING_RATE, "Learning rate of AdamW; the default is the paper's.")
    weight_decay: float = setting(WEIGHT_DECAY, "Weight decay of AdamW; the default is the paper's.")
    restarts: int = setting(1, "Prompts tried for each target, in the same batch; the best one is returned.")
    refine: int = setting(
        32,
        "Steps of Greedy Coordinate Gradient (GCG) after those of PEZ: each tries exchanges of one token; "
        "0 leaves the prompt as PEZ found it.",
    )
    stages: Sequence[tuple[Any, int]] | None = setting(
        None,
        "Pairs of a method and its number of steps, run in order; by default PEZMethod for `steps` steps, "
        "then GCGMethod for `refine` steps.",
    )
    terms: Sequence[tuple[float, Any]] = setting(
        (), "Pairs of a weight and an objective that are added to the task's own objective, the same for every target."
    )
    top_k: int = setting(1, "How many different prompts of each target are returned, best first.")
    prefix: str = setting("", "Fixed text before the learned tokens.")
    suffix: str = setting("", "Fixed text after the learned tokens.")
    init: str | None = setting(
        None, "A text whose tokens the search begins at; random tokens fill the remaining places."
    )
    banned: Sequence[str | int] = setting((), "Words and ids that must not be learned.")
    vocabulary: Vocabulary = setting(
        "stable",
        "Which tokens may be learned: stable (tokens that survive being written out and read again) or "
        "full (all but special tokens).",
    )
    patience: int | None = setting(None, "A prompt's stage ends after so many steps without improvement.")
    callback: Callable[[Progress], object] | None = setting(
        None, "Function that is called with a Progress every `every` steps; the search ends if it returns True."
    )
    every: int = setting(50, "Steps between two calls of the callback.")
    batch_size: int | None = setting(
        None,
        "Prompts (targets times restarts) learned at once; by default as many as fit into memory, halved when memory "
        "runs out. No result depends on it.",
    )
    impl: str = setting("auto", "Implementation of the nearest-token search.")
    dtype: str | None = setting(
        None,
        "Dtype of the text tower during the search: float32, bfloat16, float16 or float64; by default bfloat16 if the "
        "device multiplies in it, the model is float32 and (on a CPU) its tower is wider than 256, else the model's. "
        "The model as it was loaded computes the scores that decide and are returned.",
    )
    compile: bool = setting(
        False,
        "Run the text tower through torch.compile during the search. Compilation takes about a minute, and the last "
        "bits of a result can then depend on the batch.",
    )

    def __post_init__(self) -> None:
        for name in ("prompt_len", "steps", "restarts", "top_k", "every", "patience", "batch_size"):
            value = getattr(self, name)
            if name in ("patience", "batch_size") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        if not isinstance(self.refine, int) or isinstance(self.refine, bool) or self.refine < 0:
            raise ValueError(f"refine must be an integer, not negative; got {self.refine!r}")
        self._check_plugs()
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or None; got {self.dtype!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1; got {self.seed!r}")
        for name, minimum in (("lr", 0.0), ("weight_decay", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < minimum:
                raise ValueError(f"{name} must be a finite number, not negative; got {value!r}")

    def _check_plugs(self) -> None:
        """Checks that `stages` pairs methods with numbers of steps, and `terms` weights with objectives."""
        if self.stages is not None and not self.stages:
            raise ValueError("stages must hold at least one pair of a method and its number of steps; got none")
        for stage in self.stages or ():
            if not isinstance(stage, (tuple, list)) or len(stage) != 2 or not hasattr(stage[0], "step"):
                raise ValueError(f"stages must be pairs of a method and its number of steps; got {stage!r}")
            if not isinstance(stage[1], int) or isinstance(stage[1], bool) or stage[1] < 1:
                raise ValueError(f"stages must have positive numbers of steps; got {stage[1]!r}")
        for term in self.terms:
            if not isinstance(term, (tuple, list)) or len(term) != 2 or not hasattr(term[1], "select"):
                raise ValueError(f"terms must be pairs of a weight and an objective; got {term!r}")
            if not isinstance(term[0], (int, float)) or not math.isfinite(term[0]):
                raise ValueError(f"terms must have finite weights; got {term[0]!r}")


class SearchOptions(TypedDict, total=False):
    """The fields of `SearchConfig` as keyword arguments, for type checkers; a test compares the two."""

    prompt_len: int
    steps: int
    seed: int
    lr: float
    weight_decay: float
    restarts: int
    refine: int
    stages: Sequence[tuple[Any, int]] | None
    terms: Sequence[tuple[float, Any]]
    top_k: int
    prefix: str
    suffix: str
    init: str | None
    banned: Sequence[str | int]
    vocabulary: Vocabulary
    patience: int | None
    callback: Callable[[Progress], object] | None
    every: int
    batch_size: int | None
    impl: str
    dtype: str | None
    compile: bool


def explanation(name: str) -> str:
    """Returns the explanation of the option `name`."""
    return SearchConfig.__dataclass_fields__[name].metadata["help"]


def config_from(given: dict[str, Any]) -> SearchConfig:
    """Returns the `SearchConfig` with these options.

    Raises:
        TypeError: an option does not exist.
        ValueError: an option has a value that it cannot have.
    """
    _check_names(given, ())
    return SearchConfig(**given)


def _check_names(given: dict[str, Any], task_names: Sequence[str]) -> None:
    """Raises TypeError for a name that is neither an option nor one of the task's own parameters."""
    known = [f.name for f in fields(SearchConfig)]
    for name in given:
        if name not in known and name not in task_names:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(known)}")


def takes_config(task: Callable[..., R]) -> Callable[..., R]:
    """Gives a task whose last parameter is `**options` the fields of `SearchConfig` as visible parameters.

    The task's signature then lists the options with their defaults, and its docstring explains them. The options in
    `POSITIONAL` may also be passed by position. The task receives only the arguments that the caller passed. A
    parameter of the task's own replaces the option of the same name.
    """
    task_parameters = [
        p for p in inspect.signature(task).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    task_names = [p.name for p in task_parameters]
    options = [
        inspect.Parameter(f.name, _kind(f.name), default=f.default, annotation=f.type)
        for f in fields(SearchConfig)
        if f.name not in task_names
    ]
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = sorted([*task_parameters, *options], key=lambda p: kinds.index(p.kind))
    signature = inspect.Signature(parameters, return_annotation=inspect.signature(task).return_annotation)

    @wraps(task)
    def run(*arguments: Any, **given: Any) -> R:
        _check_names(given, task_names)
        return task(**signature.bind(*arguments, **given).arguments)

    run.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {p.name}: {explanation(p.name)} Default: {p.default!r}." for p in options]
    run.__doc__ = "\n".join([inspect.cleandoc(task.__doc__ or ""), "", "Options:", *lines])
    return run


def _kind(name: str) -> Any:
    """Returns how the option `name` may be passed: also by position, or by keyword only."""
    return inspect.Parameter.POSITIONAL_OR_KEYWORD if name in POSITIONAL else inspect.Parameter.KEYWORD_ONLY
