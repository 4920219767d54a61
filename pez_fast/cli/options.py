"""Options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from pez_fast.config import SearchConfig, Vocabulary, explanation
from pez_fast.report.console import say

if TYPE_CHECKING:
    from pez_fast.models import ClipEncoder

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
PAPER_MODEL, PAPER_WEIGHTS = "ViT-H-14", "laion2b_s32b_b79k"


class Backend(str, Enum):
    """Where `pez-fast batch` runs."""

    local = "local"
    ray = "ray"


Tokens = Enum("Tokens", {name: name for name in get_args(Vocabulary)}, type=str)  # type: ignore[misc]


def option(text: str, *names: str, **more: Any) -> Any:
    """Returns an option of typer with this help text."""
    return typer.Option(*names, help=text, **more)


Model = Annotated[str, option("A name of open_clip's, hf-hub:owner/repo, a folder, or emoji: the bundled one.")]
Pretrained = Annotated[str | None, option(f"Tag or file of its weights; {PAPER_WEIGHTS} for {PAPER_MODEL}.")]
Device = Annotated[str | None, option("A device of torch, such as cpu. Default: cuda if there is one.")]
Steps = Annotated[int, option(explanation("steps"))]
Seed = Annotated[int, option(explanation("seed"))]
PromptLen = Annotated[int, option(explanation("prompt_len"))]
Top = Annotated[int, option("How many different prompts to print, best first.", metavar="K")]
Json = Annotated[bool, option("Print JSON, and only that, on stdout.", "--json")]
Log = Annotated[Path | None, option("Record the search for TensorBoard in a folder of its own.", metavar="DIR")]


@dataclass
class SearchFlags:
    """The options that invert, batch and distill share."""

    model: Model = PAPER_MODEL
    pretrained: Pretrained = None
    device: Device = None
    ban: Annotated[list[str] | None, option("A word that must not be learned; can be repeated.")] = None
    as_json: Json = False
    config: dict[str, Any] = field(default_factory=dict)  # the values of the options in SHARED

    def options(self, **more: Any) -> dict[str, Any]:
        """Returns the options for the library's tasks, and checks them before anything slow begins."""
        given = {name: v.value if isinstance(v, Enum) else v for name, v in self.config.items()}
        given |= {"banned": tuple(self.ban or ()), **more}
        SearchConfig(**given)
        return given

    @property
    def steps(self) -> int:
        """The number of updates."""
        return self.config.get("steps", SearchConfig.steps)

    def load(self) -> ClipEncoder:
        """Loads the model, and says so first, since that can take a minute."""
        from pez_fast._shared.devices import device_from
        from pez_fast.models import load_clip

        device = device_from(self.device) if self.device is not None else None
        say(f"loading the model {self.model}" + (f" with {self.weights}" if self.weights else ""))
        return load_clip(self.model, self.weights, device)

    @property
    def weights(self) -> str | None:
        """The value of `pretrained`, or its default."""
        return PAPER_WEIGHTS if self.model == PAPER_MODEL and self.pretrained is None else self.pretrained


def parameter(name: str) -> inspect.Parameter:
    """Returns a field of `SearchConfig` as an option of a command."""
    hint, default = get_type_hints(SearchConfig)[name], getattr(SearchConfig, name)
    if hint == Vocabulary:
        hint, default = Tokens, Tokens[default]
    annotation = Annotated[hint, option(explanation(name))]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def with_search(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `SearchFlags` and SHARED; the command receives them as its argument `search`."""
    command_parameters = inspect.signature(command, eval_str=True).parameters
    hints = get_type_hints(SearchFlags, include_extras=True)
    first = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name], default=f.default)
        for f in fields(SearchFlags)
        if f.name != "config"
    ]
    shared = [parameter(name) for name in SHARED]

    @wraps(command)
    def run(**given: Any) -> None:
        config = {name: given.pop(name) for name in SHARED}
        command(search=SearchFlags(**{p.name: given.pop(p.name) for p in first}, config=config), **given)

    rest = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in command_parameters.values() if p.name != "search"]
    parameters = rest + first[:3] + shared + first[3:]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
