"""Options of the command line that several commands share."""

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
)  # fields of SearchConfig that invert, batch and distill take as they are
PAPER_MODEL, PAPER_WEIGHTS = "ViT-H-14", "laion2b_s32b_b79k"


class Backend(str, Enum):
    """Where a data set is learned."""

    local = "local"
    ray = "ray"


Tokens = Enum("Tokens", {name: name for name in get_args(Vocabulary)}, type=str)  # type: ignore[misc]


def option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


Steps = Annotated[int, option(explanation("steps"))]
Seed = Annotated[int, option(explanation("seed"))]
PromptLen = Annotated[int, option(explanation("prompt_len"))]
Top = Annotated[int, option("How many different prompts to print, best first.", metavar="K")]
Json = Annotated[bool, option("Print JSON, and only that, on stdout.", "--json")]
Log = Annotated[Path | None, option("Write the search down for TensorBoard, in a folder of its own.", metavar="DIR")]


@dataclass
class SearchFlags:
    """The options that invert, batch and distill share."""

    model: Annotated[str, option("A name of open_clip's, hf-hub:owner/repo, a folder, or emoji: the bundled one.")] = (
        PAPER_MODEL
    )
    pretrained: Annotated[str | None, option(f"Tag or file of its weights; {PAPER_WEIGHTS} for {PAPER_MODEL}.")] = None
    device: Annotated[str | None, option("Such as cpu; cuda where there is one.")] = None
    ban: Annotated[list[str] | None, option("A word that must not be learned; can be repeated.")] = None
    as_json: Json = False
    config: dict[str, Any] = field(default_factory=dict)  # of SHARED

    def options(self, **more: Any) -> dict[str, Any]:
        """The options of the library's tasks, checked before anything slow begins."""
        given = {name: v.value if isinstance(v, Enum) else v for name, v in self.config.items()}
        given |= {"banned": tuple(self.ban or ()), **more}
        SearchConfig(**given)
        return given

    @property
    def steps(self) -> int:
        return self.config.get("steps", SearchConfig.steps)

    def load(self) -> ClipEncoder:
        """The model; says so before, since it can take a minute."""
        import torch

        from pez_fast.models import load_clip

        try:
            device = torch.device(self.device) if self.device else None
        except RuntimeError:
            raise ValueError(f"device must be a device of torch, such as cuda or cpu; got {self.device!r}") from None
        if device is not None and device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} cannot be used: torch finds no CUDA device here")
        say(f"loading the model {self.model}" + (f" with {self.weights}" if self.weights else ""))
        return load_clip(self.model, self.weights, device)

    @property
    def weights(self) -> str | None:
        """`pretrained`, or what it is by default."""
        return PAPER_WEIGHTS if self.model == PAPER_MODEL and self.pretrained is None else self.pretrained


def parameter(name: str) -> inspect.Parameter:
    """A field of `SearchConfig` as an option of a command."""
    hint, default = get_type_hints(SearchConfig)[name], getattr(SearchConfig, name)
    if hint == Vocabulary:
        hint, default = Tokens, Tokens[default]
    annotation = Annotated[hint, option(explanation(name))]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def with_search(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `SearchFlags` and SHARED as options of its own; it receives them as its argument `search`."""
    own = inspect.signature(command, eval_str=True).parameters
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

    rest = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values() if p.name != "search"]
    parameters = rest + first[:3] + shared + first[3:]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
