"""What a search can be told, and what it tells while it runs: the only home of the options' defaults and explanations.

The signatures and docstrings of the tasks, the options of the command line and README's table are made from `SearchConfig`.
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
POSITIONAL = ("prompt_len", "steps", "seed")  # what may also be passed by position
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """What a callback sees: after `step` of `steps` updates, the best prompt of each target and its score.

    Where the targets do not fit into one batch, `step` counts the part of all updates that is done, and targets that wait
    have an empty prompt and a score of NaN. `step` counts the first stage of a search, and `refined` the steps of the later ones
    in the same way.
    """

    step: int
    steps: int
    prompts: list[str]
    scores: list[float]
    refined: int = 0


def setting(default: Any, explanation: str) -> Any:
    """A field of `SearchConfig`."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True)
class SearchConfig:
    """The options that every task takes.

    Raises:
        ValueError: a value that an option cannot have; the sentence names both.
    """

    prompt_len: int = setting(16, "Number of learned tokens.")
    steps: int = setting(3000, "Updates of the PEZ search.")
    seed: int = setting(
        0, "Of the random tokens that the search begins at; the same for every target, whatever else is in the batch."
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
        "Methods and their numbers of steps, one after the other; by default PEZMethod for steps, then GCGMethod for refine.",
    )
    terms: Sequence[tuple[float, Any]] = setting(
        (), "Further objectives, each with its weight, that are added to the task's own; the same for every target."
    )
    top_k: int = setting(1, "How many different prompts of each target are returned, best first.")
    prefix: str = setting("", "Fixed text before the learned tokens.")
    suffix: str = setting("", "Fixed text after the learned tokens.")
    init: str | None = setting(None, "A text whose tokens the search begins at; the places that it leaves are drawn.")
    banned: Sequence[str | int] = setting((), "Words and ids that must not be learned.")
    vocabulary: Vocabulary = setting(
        "stable", "Which tokens may be learned: stable, those that survive being written out and read again, or full."
    )
    patience: int | None = setting(None, "A target ends after so many steps without improvement.")
    callback: Callable[[Progress], object] | None = setting(
        None, "Called with a Progress every so many steps; returning True ends the search."
    )
    every: int = setting(50, "Steps between two calls of the callback.")
    batch_size: int | None = setting(
        None,
        "Prompts (targets times restarts) learned at once; by default what fits into memory, halved where it runs out. "
        "No result depends on it.",
    )
    impl: str = setting("auto", "Implementation of the search for the nearest tokens.")
    dtype: str | None = setting(
        None,
        "Of the text tower during the search: float32, bfloat16 or float16; by default bfloat16 where the device "
        "multiplies in it, the model is float32 and (on a CPU) its tower wider than 256, else the model's. "
        "The scores that decide and are returned are those of the model as it was loaded.",
    )
    compile: bool = setting(
        False,
        "Run the tower through torch.compile in the search. It takes a minute first, and a result can then depend on "
        "the batch in its last bit.",
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
        for name, least in (("lr", 0.0), ("weight_decay", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
                raise ValueError(f"{name} must be a finite number, not negative; got {value!r}")

    def _check_plugs(self) -> None:
        """That `stages` are methods with numbers of steps, and `terms` weights with objectives."""
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
    """The fields of `SearchConfig` as keyword arguments, for type checkers; a test holds the two together."""

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
    """Of the option `name`."""
    return SearchConfig.__dataclass_fields__[name].metadata["help"]


def config_from(given: dict[str, Any]) -> SearchConfig:
    """Raises: TypeError: no such option. ValueError: a value that it cannot have."""
    _check_names(given, ())
    return SearchConfig(**given)


def _check_names(given: dict[str, Any], own: Sequence[str]) -> None:
    known = [f.name for f in fields(SearchConfig)]
    for name in given:
        if name not in known and name not in own:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(known)}")


def takes_config(task: Callable[..., R]) -> Callable[..., R]:
    """Give a task whose last parameter is `**options` the fields of `SearchConfig` as parameters that can be seen.

    Its signature then lists them with their defaults, those of `POSITIONAL` also by position, and its docstring explains
    them. The task receives what was given; a parameter of its own stands in place of a field of that name.
    """
    own = [p for p in inspect.signature(task).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    names = [p.name for p in own]
    shared = [
        inspect.Parameter(f.name, _kind(f.name), default=f.default, annotation=f.type)
        for f in fields(SearchConfig)
        if f.name not in names
    ]
    order = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = sorted([*own, *shared], key=lambda p: order.index(p.kind))
    signature = inspect.Signature(parameters, return_annotation=inspect.signature(task).return_annotation)

    @wraps(task)
    def run(*arguments: Any, **given: Any) -> R:
        _check_names(given, names)
        return task(**signature.bind(*arguments, **given).arguments)

    run.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {p.name}: {explanation(p.name)} Default: {p.default!r}." for p in shared]
    run.__doc__ = "\n".join([inspect.cleandoc(task.__doc__ or ""), "", "Options:", *lines])
    return run


def _kind(name: str) -> Any:
    return inspect.Parameter.POSITIONAL_OR_KEYWORD if name in POSITIONAL else inspect.Parameter.KEYWORD_ONLY
