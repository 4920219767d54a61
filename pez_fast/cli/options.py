"""Options of the command line that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pez_fast.live import say

if TYPE_CHECKING:
    from pez_fast.encoders import ClipEncoder

PAPER_MODEL, PAPER_WEIGHTS = "ViT-H-14", "laion2b_s32b_b79k"


class Engine(str, Enum):
    """Where a data set is learned."""

    local = "local"
    ray = "ray"


class Tokens(str, Enum):
    """Which tokens may be learned."""

    stable = "stable"
    full = "full"


def option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


Steps = Annotated[int, option("Updates.")]
Seed = Annotated[int, option("Of the random tokens that the search begins at.")]
Top = Annotated[int, option("How many different prompts to print, best first.", metavar="K")]
Json = Annotated[bool, option("Print JSON, and only that, on stdout.", "--json")]
Log = Annotated[Path | None, option("Write the search down for TensorBoard, in a folder of its own.", metavar="DIR")]


@dataclass
class Search:
    """The options that invert, batch and distill share."""

    model: Annotated[str, option("A name of open_clip's, hf-hub:owner/repo, a folder, or emoji: the bundled one.")] = (
        PAPER_MODEL
    )
    pretrained: Annotated[str | None, option(f"Tag or file of its weights; {PAPER_WEIGHTS} for {PAPER_MODEL}.")] = None
    device: Annotated[str | None, option("Such as cpu; cuda where there is one.")] = None
    steps: Steps = 3000
    seed: Seed = 0
    lr: Annotated[float, option("Learning rate of AdamW.")] = 0.1
    weight_decay: Annotated[float, option("Weight decay of AdamW.")] = 0.1
    restarts: Annotated[int, option("Prompts tried for each target, in one batch; the best is kept.")] = 1
    polish: Annotated[int, option("Rounds at the end in which single tokens are exchanged; 0: as PEZ found it.")] = 32
    prefix: Annotated[str, option("Fixed text before the learned tokens.")] = ""
    suffix: Annotated[str, option("Fixed text behind the learned tokens.")] = ""
    init: Annotated[str | None, option("A text to begin at, in place of random tokens.")] = None
    ban: Annotated[list[str] | None, option("A word that must not be learned; can be repeated.")] = None
    vocabulary: Annotated[Tokens, option("stable: only tokens that survive being typed in again.")] = Tokens.stable
    patience: Annotated[int | None, option("End after so many steps without improvement.")] = None
    dtype: Annotated[
        str | None,
        option("Of the text tower during the search: float32, bfloat16, float16; the fastest that keeps quality."),
    ] = None
    compile: Annotated[bool, option("Run the tower through torch.compile in the search.", "--compile")] = False
    as_json: Json = False

    def options(self, **more: Any) -> dict[str, Any]:
        """The options of the library's tasks, checked before anything slow begins."""
        from pez_fast.options import Options

        same = (
            "steps",
            "seed",
            "lr",
            "weight_decay",
            "restarts",
            "polish",
            "prefix",
            "suffix",
            "init",
            "patience",
            "dtype",
            "compile",
        )
        given = {name: getattr(self, name) for name in same}
        given |= {"banned": tuple(self.ban or ()), "vocabulary": self.vocabulary.value, **more}
        Options(**given)
        return given

    def load(self) -> ClipEncoder:
        """The model; says so before, since it can take a minute."""
        import torch

        from pez_fast.encoders import load_clip

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


def with_search(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `Search` as options of its own; it receives them as its argument `search`."""
    own = inspect.signature(command, eval_str=True).parameters
    hints = get_type_hints(Search, include_extras=True)
    shared = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[f.name],
            default=inspect.Parameter.empty if f.default is MISSING else f.default,
        )
        for f in fields(Search)
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        command(search=Search(**{p.name: given.pop(p.name) for p in shared}), **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values() if p.name != "search"] + shared
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
