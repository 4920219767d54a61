"""The options of a search and what a callback sees of it.

`SearchConfig` is the only home of the options' defaults and explanations: the signatures and docstrings of the tasks,
the options of the command line and the table in docs/options.md are made from it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from operator import index
from typing import Any, TypedDict, TypeVar

from pez_fast.config.words import VOCABULARIES as VOCABULARIES
from pez_fast.config.words import Vocabulary as Vocabulary
from pez_fast.config.words import listed_words as listed_words

LEARNING_RATE, WEIGHT_DECAY = 0.1, 0.1  # of AdamW, as in the paper
DTYPES = ("float32", "bfloat16", "float16", "float64")
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


def whole_number(name: str, value: Any, least: int, kind: str) -> int:
    """Returns an option's value as a plain int; it may be an integer of numpy's.

    Raises:
        ValueError: it is no whole number, or a smaller one than `least`; the message says that it must be `kind`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or index(value) < least:
        raise ValueError(f"{name} must be {kind}; got {value!r}")
    return index(value)


def finite_number(name: str, value: Any) -> float:
    """Returns an option's value as a plain float.

    Raises:
        ValueError: it is not a finite number, or is negative.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__") or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number, not negative; got {value!r}")
    return float(value)


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
        "Which tokens may be learned: stable (tokens that survive being written out and read again), words (those of "
        "them that are whole English words), full (all but special tokens), or a file or a list of words (those stable "
        "tokens that are one of these words; case does not matter).",
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
            if getattr(self, name) is not None or name not in ("patience", "batch_size"):
                self._set_integer(name, 1, "a positive integer")
        self._set_integer("refine", 0, "an integer, not negative")
        self._set_integer("seed", 0, "an integer from 0 to 2**63 - 1")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1; got {self.seed!r}")
        for name in ("lr", "weight_decay"):
            object.__setattr__(self, name, finite_number(name, getattr(self, name)))
        for name in ("prefix", "suffix", "init"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "init" and value is None):
                raise ValueError(f"{name} must be a text; got {value!r}")
        object.__setattr__(self, "vocabulary", listed_words(self.vocabulary))
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback must be a function, or None; got {self.callback!r}")
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
            if self.dtype not in DTYPES:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or None; got {self.dtype!r}")
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile must be True or False; got {self.compile!r}")
        self._check_banned()
        self._check_plugs()

    def _set_integer(self, name: str, least: int, kind: str) -> None:
        """Makes a plain int of an option, which may be an integer of numpy's."""
        object.__setattr__(self, name, whole_number(name, getattr(self, name), least, kind))

    def _check_banned(self) -> None:
        if isinstance(self.banned, (str, bytes)) or not isinstance(self.banned, Iterable):
            raise ValueError(f"banned must be a list of words and ids; got {self.banned!r}")
        for entry in self.banned:
            if isinstance(entry, bool) or not (isinstance(entry, str) or hasattr(entry, "__index__")):
                raise ValueError(f"banned must hold words and ids; got {entry!r}")
        plain = tuple(entry if isinstance(entry, str) else index(entry) for entry in self.banned)
        object.__setattr__(self, "banned", plain)

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


def explanation(name: str, config: type = SearchConfig) -> str:
    """Returns the explanation of the option `name` of a configuration."""
    return config.__dataclass_fields__[name].metadata["help"]  # type: ignore[attr-defined]


def config_from(given: dict[str, Any]) -> SearchConfig:
    """Returns the `SearchConfig` with these options.

    Raises:
        TypeError: an option does not exist.
        ValueError: an option has a value that it cannot have.
    """
    _check_names(given, [f.name for f in fields(SearchConfig)])
    return SearchConfig(**given)


def _check_names(given: dict[str, Any], known: Sequence[str], own: Sequence[str] = ()) -> None:
    """Raises TypeError for a name that is neither an option nor one of the task's own parameters."""
    for name in given:
        if name not in known and name not in own:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(known)}")


def takes_config(
    task: Callable[..., R] | None = None, *, also: type | None = None, defaults: dict[str, Any] | None = None
) -> Any:
    """Gives a task whose last parameter is `**options` the fields of `SearchConfig` as visible parameters.

    The task's signature then lists the options with their defaults, and its docstring explains them. The options in
    `POSITIONAL`, and in the other configuration's `POSITIONAL`, may also be passed by position. The task receives only
    the arguments that the caller passed, and `defaults`. A parameter of the task's own replaces the option of the same
    name.

    Args:
        also: another configuration whose fields are options too; they come first.
        defaults: defaults of the task's own for some options.
    """
    if task is None:
        return partial(takes_config, also=also, defaults=defaults)
    given_defaults = dict(defaults or {})
    own = [p for p in inspect.signature(task).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own_names = [p.name for p in own]
    configs = [config for config in (also, SearchConfig) if config is not None]
    options = [
        (config, inspect.Parameter(f.name, _kind(f.name, config), default=f.default, annotation=f.type))
        for config in configs
        for f in fields(config)
        if f.name not in own_names
    ]
    options = [(c, p.replace(default=given_defaults.get(p.name, p.default))) for c, p in options]
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = sorted([*own, *(p for _, p in options)], key=lambda p: kinds.index(p.kind))
    signature = inspect.Signature(parameters, return_annotation=inspect.signature(task).return_annotation)
    names = [p.name for _, p in options]

    @wraps(task)
    def run(*arguments: Any, **given: Any) -> R:
        _check_names(given, names, own_names)
        return task(**{**given_defaults, **signature.bind(*arguments, **given).arguments})

    run.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {p.name}: {explanation(p.name, config)} Default: {p.default!r}." for config, p in options]
    run.__doc__ = "\n".join([inspect.cleandoc(task.__doc__ or ""), "", "Options:", *lines])
    return run


def _kind(name: str, config: type) -> Any:
    """Returns how the option `name` may be passed: also by position, or by keyword only."""
    positional = POSITIONAL if config is SearchConfig else getattr(config, "POSITIONAL", ())
    return inspect.Parameter.POSITIONAL_OR_KEYWORD if name in positional else inspect.Parameter.KEYWORD_ONLY
