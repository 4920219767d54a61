"""The command `pez-fast style`: what pictures share, applied to new subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app, check_history, finish, watched
from pez_fast.cli.inputs import read_images
from pez_fast.cli.options import History, Log, PromptLen, SearchFlags, option, with_search
from pez_fast.config import SearchConfig
from pez_fast.report.console import say
from pez_fast.report.recipes_console import show_styled
from pez_fast.report.tensorboard import watch


@app.command()
@with_search
def style(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Pictures of one style: files, http(s) addresses, or - for stdin.",
            metavar="IMAGE",
            show_default=False,
        ),
    ],
    subject: Annotated[
        list[str], option('A new subject, such as "a cat"; can be repeated.', metavar="TEXT", show_default=False)
    ],
    search: SearchFlags,
    prompt_len: PromptLen = SearchConfig.prompt_len,
    sheet: Annotated[
        Path | None, option("Draw pictures, style and new prompts into this PNG file.", metavar="FILE.png")
    ] = None,
    tensorboard: Log = None,
    history: History = False,
) -> None:
    """Learn what pictures share, apply it to new subjects, and score the new prompts against the pictures."""
    from pez_fast.report.sheet import check_writable
    from pez_fast.report.style_sheet import write_style
    from pez_fast.tasks import apply_style
    from pez_fast.tasks import invert as invert_all

    options = search.options(prompt_len=prompt_len)
    check_history(history, search.as_json)
    blank = next((text for text in subject if not text.strip()), None)
    if blank is not None:
        raise ValueError(f"--subject must not be empty; got {blank!r}")
    if sheet is not None:
        check_writable(sheet, images)
    opened = read_images(images)
    watching = watch([f"{len(images)} pictures"], search.steps, tensorboard)
    clip = search.load()
    with watching as progress:
        learned = invert_all(opened, clip, **options, **watched(progress))
    prompts = [] if learned.error else apply_style(learned, subject, clip, opened)
    show_styled(learned, prompts, search.as_json, history)
    if sheet is not None and write_style(sheet, opened, learned, prompts):
        say(f"sheet written to {sheet}")
    finish([learned], search.steps)
