"""The commands that learn nothing: `score`, `models` and `info`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from pez_fast._shared.catalog import CATALOG, DEFAULT_MODEL
from pez_fast.cli.app import app
from pez_fast.cli.inputs import STDIN, read_images
from pez_fast.cli.options import Device, Json, Model, Pretrained, SearchFlags, option
from pez_fast.cli.table import entries_of, print_models
from pez_fast.config import SearchConfig
from pez_fast.report.console import print_json, say
from pez_fast.report.looking import print_info, print_scores


@app.command()
def score(
    items: Annotated[
        list[str],
        typer.Argument(
            help="Image files, http(s) addresses or - for stdin, and prompts; all that is no file is a prompt.",
            metavar="IMAGE|TEXT",
            show_default=False,
        ),
    ],
    model: Model = DEFAULT_MODEL,
    pretrained: Pretrained = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show the cosine of each image with each prompt. Cosines of different models cannot be compared.

    With several encoders, such as --model sdxl, it is the mean of their own, which stand beside it.
    """
    from pez_fast.tasks import score as score_all

    files = [item for item in items if _is_image(item)]
    prompts = [item for item in items if item not in files]
    if not files or not prompts:
        raise ValueError(f"score needs at least one image file and one prompt; got {len(files)} and {len(prompts)}")
    blank = next((prompt for prompt in prompts if not prompt.strip()), None)
    if blank is not None:
        raise ValueError(f"a prompt must not be empty; got {blank!r}")
    images = read_images(files)
    clip = SearchFlags(model=model, pretrained=pretrained, device=device).load()
    encoders = enumerate(getattr(clip, "models", ()), 1)
    own = {f"{k}. {one.name}": score_all(images, prompts, one).tolist() for k, one in encoders}
    print_scores(files, prompts, score_all(images, prompts, clip).tolist(), as_json, clip.name, own)


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Short names; default: all.", metavar="NAME")] = None,
    measure: Annotated[
        bool, option("Time a few steps with random weights in place of a guess; minutes.", "--measure")
    ] = False,
    device: Annotated[str | None, option("A device of torch for --measure. Default: cuda if there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Show which model to use for which image generator, what it costs, and how long an image takes here."""
    from pez_fast.cli.timing import PROMPT_LEN, guessed_seconds, matmul_speed, measured_seconds

    chosen = [entry for name in names for entry in entries_of(name)] if names else list(CATALOG)
    if device is not None and not measure:
        raise ValueError(f"--device has an effect only with --measure; got {device!r}")
    steps, refine = SearchConfig.steps, SearchConfig.refine
    speed, seconds, timed = 0.0 if measure else matmul_speed(), [], {}
    for entry in chosen:
        if measure and entry.where not in timed:
            say(f"timing {entry.name}")
            timed[entry.where] = measured_seconds(entry, steps, refine, device)
        seconds.append(timed[entry.where] if measure else guessed_seconds(entry, steps, refine, speed))
    print_models(chosen, seconds, measure, as_json)
    how = "measured with random weights" if measure else "guessed for this CPU from one product of matrices"
    if not as_json:
        say(f"seconds: about, for one image, {PROMPT_LEN} tokens and {steps} steps, {how}")


def _is_image(item: str) -> bool:
    """Whether an argument of `score` is meant as an image."""
    from pez_fast.images import SUFFIXES

    if item == STDIN or re.match(r"[a-z][a-z0-9+.-]+://\S+$", item, re.IGNORECASE):
        return True
    try:
        return bool(item) and (
            Path(item).exists() or Path(item).suffix.lower() in SUFFIXES | {".avif", ".jp2", ".heic"}
        )
    except (OSError, ValueError):  # a text that no file can be named
        return False


@app.command()
def info(as_json: Json = False) -> None:
    """Show which implementations can be used here, and why the others cannot."""
    from pez_fast.information import info as facts

    if as_json:
        print_json(facts(), indent=2)
    else:
        print_info(facts())
