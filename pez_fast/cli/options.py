"""Options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pez_fast._shared.catalog import DEFAULT_MODEL, entry_of, find, joint_names, size_of, tag_of
from pez_fast.config import VOCABULARIES, SearchConfig, explanation
from pez_fast.labelled import LabelConfig
from pez_fast.report.console import say

if TYPE_CHECKING:
    from pez_fast.models import ClipEncoder, HFClipEncoder, JointModel

SHARED = (
    "steps",
    "seed",
    "lr",
    "weight_decay",
    "restarts",
    "refine",
    "prefix",
    "suffix",
    "init",
    "vocabulary",
    "patience",
    "dtype",
    "compile",
    "impl",
)  # fields of SearchConfig that are options of invert, batch and distill
WRITTEN: dict[str, tuple[Any, ...]] = {  # type, and name if it is another one, of options as a command line has them
    "verbalizer": (str | None, "--labels"),
    "label": (str | None, "--label-column"),
    "held_out": (str | None,),
    "calibrate": (bool, "--calibrate"),
    "vocabulary": (str,),
}
METAVARS = {"vocabulary": f"[{'|'.join(VOCABULARIES)}|FILE]"}  # what the help shows of an option's value
# Presets, by benchmarks/results/quality_cpu.json: 200 steps and the refinement reach what 400 and it do; the refinement
# is worth more than any number of steps, and restarts the least.
FAST = {"steps": 200}
BEST = {"steps": 3000, "restarts": 4, "refine": 128}


class ChooseBy(str, Enum):
    """Who chooses among the best prompts."""

    model = "model"
    referee = "referee"


class Backend(str, Enum):
    """Where `pez-fast batch` runs."""

    local = "local"
    ray = "ray"


def option(text: str, *names: str, **more: Any) -> Any:
    """Returns an option of typer with this help text."""
    return typer.Option(*names, help=text, **more)


Model = Annotated[
    str,
    option(
        "A short name that `pez-fast models` lists, a name of open_clip's, hf-hub:owner/repo, or a folder; "
        "hf:owner/repo for a model of transformers. sdxl and sd3, or names joined by +, stand for several encoders "
        "that read one prompt."
    ),
]
Pretrained = Annotated[str | None, option("Tag or file of its weights, for a name of open_clip's.")]
EncoderWeight = Annotated[
    list[float] | None, option("With several encoders, a weight for each: what its cosine counts. Default: all alike.")
]
Device = Annotated[str | None, option("A device of torch, such as cpu. Default: cuda if there is one.")]
Seed = Annotated[int, option(explanation("seed"))]
PromptLen = Annotated[int, option(explanation("prompt_len"))]
Top = Annotated[int, option("How many different prompts to print, best first.", metavar="K")]
Ban = Annotated[list[str] | None, option("A word that must not be learned; can be repeated.")]
Json = Annotated[bool, option("Print JSON, and only that, on stdout.", "--json")]
History = Annotated[bool, option("With --json: also the score at every step.", "--history")]
Referee = Annotated[
    str | None,
    option(
        "A second model that takes no part in the search and scores the prompts; named as for --model.", metavar="MODEL"
    ),
]
Log = Annotated[Path | None, option("Record the search for TensorBoard in a folder of its own.", metavar="DIR")]

Bank = Annotated[
    str | None,
    option(
        "A folder of .txt files with one phrase a line, or the name of a bank that comes with the package: general, "
        "emoji. Default: emoji for the model of that name, else general.",
        metavar="FOLDER",
    ),
]
Cache = Annotated[
    Path | None, option("Folder that keeps the features of phrases. Default: the user's folder of caches.")
]


@dataclass
class SearchFlags:
    """The options that invert, batch and distill share."""

    model: Model = DEFAULT_MODEL
    pretrained: Pretrained = None
    encoder_weight: EncoderWeight = None
    device: Device = None
    config: dict[str, Any] = field(default_factory=dict)  # the values of the options in SHARED
    ban: Ban = None
    as_json: Json = False

    def options(self, **more: Any) -> dict[str, Any]:
        """Returns the options for the library's tasks, and checks them before anything slow begins."""
        given = plain_values(self.config) | {"banned": tuple(self.ban or ()), **more}
        SearchConfig(**given)
        return given

    @property
    def steps(self) -> int:
        """The number of updates."""
        return self.config.get("steps", SearchConfig.steps)

    def load(self) -> ClipEncoder | HFClipEncoder | JointModel:
        """Loads the model, or several as one, and says so first, since that can take a minute."""
        from pez_fast.models import JointModel, load_clip
        from pez_fast.models.arguments import checked_device

        names, shares = joint_names(self.model), self.encoder_weight or None
        if shares is not None and len(shares) != len(names):
            raise ValueError(f"--encoder-weight must be given once for each of several encoders; got {shares}")
        if names:
            if self.pretrained is not None:
                raise ValueError(f"--pretrained is for one model, not for {self.model}; got {self.pretrained!r}")
            each = [replace(self, model=name, encoder_weight=None) for name in names]
            return JointModel([one.load() for one in each], shares)

        device = checked_device(self.device) if self.device is not None else None
        entry, weights = entry_of(self.model, self.weights), self.weights
        shown = entry.where if entry is not None and find(self.model) else ""
        name = f"{self.model} ({shown})" if shown not in ("", self.model) else self.model
        size = "" if entry is None or entry.is_here() else f"; about {size_of(entry.download_bytes)} to download first"
        say(f"loading the model {name}" + (f" with {weights}" if weights else "") + size)
        return load_clip(self.model, weights, device)

    def check_referee(self, name: str | None) -> None:
        """Raises ValueError if a second model is the one that learns."""
        if name == self.model:
            raise ValueError(f"--referee must be another model than --model; both are {name}")

    def load_referee(self, name: str) -> ClipEncoder | HFClipEncoder | JointModel:
        """Loads a second model onto the same device."""
        return SearchFlags(model=name, device=self.device).load()

    @property
    def weights(self) -> str | None:
        """The value of `pretrained`; without one, the weights that the catalogue names for a name of open_clip's."""
        return tag_of(self.model) if self.pretrained is None and find(self.model) is None else self.pretrained


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of options with what typer's enumerations stand for."""
    return {name: v.value if isinstance(v, Enum) else v for name, v in config.items()}


def parameter(name: str, defaults: Mapping[str, Any] | None = None) -> inspect.Parameter:
    """Returns a field of `SearchConfig` or `LabelConfig` as an option of a command; `defaults` can replace its own."""
    config = LabelConfig if name in LabelConfig.__dataclass_fields__ else SearchConfig
    hint, default = get_type_hints(config)[name], (defaults or {}).get(name, getattr(config, name))
    hint, *names = WRITTEN.get(name, (hint,))
    annotation = Annotated[hint, option(explanation(name, config), *names, metavar=METAVARS.get(name))]  # type: ignore[valid-type]
    return keyword(name, annotation, default)


def flag(name: str, values: dict[str, int]) -> inspect.Parameter:
    """Returns the flag of a preset."""
    told = " ".join(f"--{option_name} {value}" for option_name, value in values.items())
    annotation = Annotated[bool, option(f"Short for {told}; an option that is given stays.", f"--{name}")]
    return keyword(name, annotation, False)


def preset(fast: bool, best: bool, given: Callable[[str], bool]) -> dict[str, int]:
    """Returns the values of a preset for the options that are not given."""
    if fast and best:
        raise ValueError("--fast and --best exclude each other")
    return {name: value for name, value in (FAST if fast else BEST if best else {}).items() if not given(name)}


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def with_flags(
    kind: type, names: Sequence[str] = (), defaults: Mapping[str, Any] | None = None, presets: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that gives a command the fields of a dataclass as options.

    The command receives an object of the class as its argument `search`.

    Args:
        kind: the dataclass. Options of a search take the place of its field `config`, if it has one.
        names: the fields of `SearchConfig` and `LabelConfig` that are options.
        defaults: of those that have another default here.
        presets: whether --fast and --best stand before them.
    """
    hints = get_type_hints(kind, include_extras=True)
    added: list[inspect.Parameter] = []
    for f in fields(kind):
        if f.name == "config":
            added += [flag("fast", FAST), flag("best", BEST)] if presets else []
            added += [parameter(name, defaults) for name in names]
        else:
            added.append(keyword(f.name, hints[f.name], f.default))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        rest = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "search"]

        @wraps(command)
        def run(context: typer.Context, **given: Any) -> None:
            mine = {p.name: given.pop(p.name) for p in rest}
            config = {name: given.pop(name) for name in names}
            if presets:
                config |= preset(given.pop("fast"), given.pop("best"), lambda name: is_given(context, name))
            command(search=kind(**given, **({"config": config} if names else {})), **mine)

        parameters = [keyword("context", typer.Context), *rest, *added]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """Returns a parameter that is passed by its name."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


with_search = with_flags(SearchFlags, SHARED, presets=True)
