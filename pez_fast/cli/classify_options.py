"""Options that the commands of `pez-fast classify` share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pez_fast.cli.options import Ban, Device, Json, option, plain_values
from pez_fast.config import SearchConfig
from pez_fast.labelled import LEARNING, PRESETS, LabelConfig
from pez_fast.labelled.examples import HUB
from pez_fast.report.console import say

if TYPE_CHECKING:
    from pez_fast.models.language import LanguageModel
    from pez_fast.tasks.labelled_task import Labelled

EXAMPLES = ("template", "verbalizer", "label", "split", "limit", "calibrate")  # options of all commands
SEARCH = ("steps", "restarts", "refine", "init", "vocabulary", "patience", "dtype", "impl")
SWEPT = (*EXAMPLES, "held_out", "minibatch", *SEARCH)  # options of sweep and learn
LEARNED = ("prompt_len", "seed", "shots", "fluency", *SWEPT)
BUNDLED, USUAL = "reviews", "gpt2-large"  # the default models
MOST_VALUES = 10_000  # of a span such as 0-4
V = TypeVar("V")


class Method(str, Enum):
    """What moves the tokens of a prompt."""

    pez = "pez"
    autoprompt = "autoprompt"
    autoprompt_sgd = "autoprompt-sgd"
    fluentprompt = "fluentprompt"
    soft = "soft"
    gcg = "gcg"


Source = Annotated[
    str,
    typer.Argument(
        help="A .csv, .tsv, .jsonl, .json or .parquet file, hf:owner/name, or a preset: sst2, agnews, amazon, and "
        "(with the package) reviews, headlines.",
        metavar="SOURCE",
        show_default=False,
    ),
]
LanguageModelName = Annotated[
    str | None,
    option(
        f"A name on the Hugging Face hub, a folder, or {BUNDLED}, the small model that comes with the package. "
        f"Default: {BUNDLED} for the presets that come with it, else {USUAL}.",
    ),
]


@dataclass
class ExampleFlags:
    """The options that say what the examples are."""

    config: dict[str, Any] = field(default_factory=dict)  # the values of the options in EXAMPLES, SWEPT or LEARNED
    device: Device = None
    as_json: Json = False

    def labels(self, **more: Any) -> LabelConfig:
        """Returns the options of the classification, checked."""
        given = {name: value for name, value in self.config.items() if name in LabelConfig.__dataclass_fields__}
        if given.get("held_out") is not None:
            given["held_out"] = number(given["held_out"], "--held-out")
        return LabelConfig(**given | more)

    def read(self, source: str, test: bool = True) -> Labelled:
        """Returns the examples, checked with template and labels, before a model is loaded.

        Args:
            source: what the command line names.
            test: whether a preset's rows are those to test on.
        """
        from pez_fast.models.arguments import checked_device
        from pez_fast.tasks.labelled_task import labelled

        if self.device is not None:
            checked_device(self.device)
        return labelled(source, self.labels(), test)

    def column(self, source: str) -> str:
        """Returns the column of the labels."""
        return self.labels().label or (PRESETS[source].label if source in PRESETS else "label")


@dataclass
class LearnFlags(ExampleFlags):
    """The options that learn and sweep share."""

    model: LanguageModelName = None
    method: Annotated[Method, option("What moves the tokens for --steps steps.")] = Method.pez
    lr: Annotated[float | None, option("Learning rate. Default: the method's.")] = None
    weight_decay: Annotated[float | None, option("Weight decay of AdamW, for pez and soft. Default: theirs.")] = None
    ban: Ban = None

    def options(self, **more: Any) -> dict[str, Any]:
        """Returns the options for the library's tasks, and checks them before anything slow begins."""
        given = {k: v for k, v in plain_values(self.config).items() if k in SearchConfig.__dataclass_fields__}
        given |= {"banned": tuple(self.ban or ()), **more}
        rates = {name: value for name in ("lr", "weight_decay") if (value := getattr(self, name)) is not None}
        if self.method is Method.pez:
            given |= rates
        SearchConfig(**given)
        if self.method is not Method.pez:
            given["stages"] = stages_of(self.method, given, rates)
        return given

    @property
    def steps(self) -> int:
        """The number of updates."""
        return self.config.get("steps", LEARNING["steps"])


def stages_of(method: Method, given: Mapping[str, Any], rates: Mapping[str, float]) -> list[tuple[Any, int]]:
    """Returns the stages of a search by a method, and by GCG after it where that is asked for."""
    from pez_fast import methods

    kinds: dict[Method, Any] = {
        Method.autoprompt: methods.AutoPromptMethod,
        Method.autoprompt_sgd: methods.AutoPromptSGDMethod,
        Method.fluentprompt: methods.FluentPromptMethod,
        Method.soft: methods.SoftPromptMethod,
        Method.gcg: methods.GCGMethod,
    }
    kind = kinds[method]
    names = {f.name for f in dataclasses.fields(kind)}
    settings = dict(rates) | ({"impl": given["impl"]} if given["impl"] != SearchConfig.impl else {})
    for name, value in settings.items():
        if name not in names:
            raise ValueError(f"--{name.replace('_', '-')} has no effect with --method {method.value}; got {value!r}")
    if "steps" in names:
        settings["steps"] = given["steps"]
    return [(kind(**settings), given["steps"])] + ([(methods.GCGMethod(), given["refine"])] if given["refine"] else [])


def model_of(model: str | None, source: str) -> str:
    """Returns the name of the model: the one that is given, or the default for the examples."""
    is_bundled = source in PRESETS and not PRESETS[source].source.startswith(HUB)
    return model if model is not None else BUNDLED if is_bundled else USUAL


def load_language_model(name: str, device: str | None, why: str = "loading") -> LanguageModel:
    """Loads a language model, and says so first, since that can take minutes."""
    from pez_fast.models.language import load_lm

    say(f"{why} the model {name}")
    return load_lm(name, device)


def check_models(names: Sequence[str]) -> None:
    """Loads models for a moment, so that one that cannot be had is refused before the others do their work."""
    for name in dict.fromkeys(names):
        load_language_model(name, "cpu", "trying")


def number(text: str, name: str) -> int | float:
    """Returns a number of an option's text, whole if it is written as such."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"{name} must be a number; got {text!r}")


def listed(text: str, name: str, kind: Callable[[str], V], example: str = "0,1,2 or 0-4") -> list[V]:
    """Returns the values of an option such as "0,1,2", each once; of whole numbers also "0-4"."""
    found: list[Any] = []
    for part in map(str.strip, text.split(",")):
        span = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", part) if kind is int else None
        try:
            found += _span(int(span[1]), int(span[2])) if span else [kind(part)]
        except ValueError:
            raise ValueError(f"{name} must be values with commas between, such as {example}; got {text!r}") from None
    return list(dict.fromkeys(found))


def _span(first: int, last: int) -> range:
    """Returns the numbers from the first to the last, of which there must be a reasonable number."""
    if not first <= last < first + MOST_VALUES:
        raise ValueError
    return range(first, last + 1)


def shots_of(text: str) -> int | None:
    """Returns a number of examples of each label, or None for all."""
    return None if text == "all" else int(text)
