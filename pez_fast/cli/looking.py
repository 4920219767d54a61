"""The commands that learn nothing: `score` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app
from pez_fast.cli.options import PAPER_MODEL, Device, Json, Model, Pretrained, SearchFlags
from pez_fast.report.console import print_info, print_json, print_scores


@app.command()
def score(
    items: Annotated[
        list[str],
        typer.Argument(
            help="Image files and prompts; all that is no file is a prompt", metavar="IMAGE|TEXT", show_default=False
        ),
    ],
    model: Model = PAPER_MODEL,
    pretrained: Pretrained = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show the cosine of each image with each prompt. Cosines of different models cannot be compared."""
    from pez_fast.images import SUFFIXES, load_image
    from pez_fast.tasks import score as score_all

    suffixes = SUFFIXES | {".avif", ".jp2", ".heic"}
    files = [item for item in items if Path(item).is_file() or Path(item).suffix.lower() in suffixes]
    prompts = [item for item in items if item not in files]
    if not files or not prompts:
        raise ValueError(f"score needs at least one image file and one prompt; got {len(files)} and {len(prompts)}")
    images = [load_image(path) for path in files]
    clip = SearchFlags(model=model, pretrained=pretrained, device=device).load()
    print_scores(files, prompts, score_all(images, prompts, clip).tolist(), as_json)


@app.command()
def info(as_json: Json = False) -> None:
    """Show which implementations can be used here, and why the others cannot."""
    from pez_fast.information import info as facts

    if as_json:
        print_json(facts(), indent=2)
    else:
        print_info(facts())
