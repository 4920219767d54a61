"""The command `mix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app, check_history, finish, watched
from pez_fast.cli.inputs import Unreadable, read_images
from pez_fast.cli.options import History, PromptLen, SearchFlags, option, with_search
from pez_fast.config import SearchConfig
from pez_fast.report.console import say, watch


@app.command()
@with_search
def mix(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, http(s) addresses, or - for stdin.", metavar="IMAGE", show_default=False),
    ],
    search: SearchFlags,
    prompt_len: PromptLen = SearchConfig.prompt_len,
    sheet: Annotated[
        Path | None, option("Draw images, prompts and scores into this PNG file.", metavar="FILE.png")
    ] = None,
    history: History = False,
) -> None:
    """Learn a prompt for each image and join them, and one for all; show both ways side by side."""
    from pez_fast.report.mixing import show_mix, write_mix
    from pez_fast.report.sheet import check_writable
    from pez_fast.tasks import mix as mix_all

    options = search.options(prompt_len=prompt_len)
    check_history(history, search.as_json)
    if sheet is not None:
        check_writable(sheet, images)
    opened = read_images(images, each=True)
    readable = [path for path, image in zip(images, opened, strict=True) if not isinstance(image, Unreadable)]
    clip = search.load()
    with watch([*readable, "all"], search.steps) as progress:
        found = mix_all(opened, clip, **options, **watched(progress))
    show_mix(images, found, search.as_json, history)
    if sheet is not None:
        drawn = [[] if isinstance(image, Unreadable) else [image] for image in opened]
        if write_mix(sheet, [Path(name).name for name in images], drawn, found):
            say(f"sheet written to {sheet}")
    finish([*found.each, found.shared], search.steps)
