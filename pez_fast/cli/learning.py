"""The commands that learn prompts of single images and texts: `demo`, `invert`, `distill`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pez_fast.cli.app import app, check_history, finish, watched
from pez_fast.cli.inputs import Unreadable, read_images
from pez_fast.cli.options import History, Json, Log, PromptLen, SearchFlags, Seed, Top, option, with_search
from pez_fast.config import SearchConfig
from pez_fast.report.console import say, show_many, show_one
from pez_fast.report.tensorboard import watch

if TYPE_CHECKING:
    from pez_fast.result import PromptResult

DEMO_STEPS, DEMO_LENGTH, DEMO_RESTARTS, DEMO_VOCABULARY = 300, 6, 8, "words"
LANGUAGE_STEPS = 100


class BankUse(str, Enum):
    """What `invert` does with phrases of a bank."""

    init = "init"
    hold = "hold"


InvertBank = Annotated[
    str | None,
    option(
        "Phrases that the prompt begins at, those that fit the image: a folder of .txt files, general or emoji.",
        metavar="FOLDER",
    ),
]


@app.command()
def demo(
    steps: Annotated[
        int | None, option(f"Updates of the search. Default: {DEMO_STEPS}, or with --language {LANGUAGE_STEPS}.")
    ] = None,
    seed: Seed = SearchConfig.seed,
    language: Annotated[
        bool, option("Learn a prompt for the example reviews with the small language model.", "--language")
    ] = False,
    out: Annotated[Path, option("File of the sheet.", metavar="FILE.png")] = Path("pez_fast_demo.png"),
    as_json: Json = False,
    history: History = False,
) -> None:
    """Learn a prompt for each of the example images with the small bundled model, and draw a sheet of them."""
    if language:
        from pez_fast.cli.classify_demo import language_demo

        return language_demo(LANGUAGE_STEPS if steps is None else steps, seed, out, as_json, history)
    from pez_fast.images import load_image
    from pez_fast.models.loading import BUNDLED
    from pez_fast.report.sheet import check_writable, write_sheet
    from pez_fast.tasks import invert_batch

    steps = DEMO_STEPS if steps is None else steps
    search = SearchFlags(
        model="emoji", config={"steps": steps, "seed": seed, "restarts": DEMO_RESTARTS, "vocabulary": DEMO_VOCABULARY}
    )
    options = search.options(prompt_len=DEMO_LENGTH)
    check_history(history, as_json)
    check_writable(out)
    files = sorted((BUNDLED["emoji"] / "images").glob("*.png"))
    if not files:
        raise ValueError("the bundled model and its images are not part of this installation")
    names, images = [file.stem for file in files], [load_image(file) for file in files]
    clip = search.load()
    with watch(names, steps) as progress:
        results = invert_batch(images, clip, **options, **watched(progress))
    show_many(names, results, as_json, history)
    if write_sheet(out, names, [[image] for image in images], results):
        say(f"sheet written to {out}")
    finish(results, steps)


@app.command()
@with_search
def invert(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, http(s) addresses, or - for stdin.", metavar="IMAGE", show_default=False),
    ],
    search: SearchFlags,
    each: Annotated[bool, option("Learn a prompt for each image, in place of one for all.", "--each")] = False,
    prompt_len: PromptLen = SearchConfig.prompt_len,
    top: Top = SearchConfig.top_k,
    weight: Annotated[
        list[float] | None, option("A weight for each image; a negative one pushes the prompt away from it.")
    ] = None,
    bank: InvertBank = None,
    bank_use: Annotated[BankUse, option("Begin at the phrases, or hold them and learn what follows.")] = BankUse.init,
    sheet: Annotated[
        Path | None, option("Draw images, prompts and scores into this PNG file.", metavar="FILE.png")
    ] = None,
    tensorboard: Log = None,
    history: History = False,
) -> None:
    """Learn a prompt from images: one for all that they share, or with --each one for each."""
    from pez_fast.report.sheet import check_writable, write_sheet

    options = search.options(prompt_len=prompt_len, top_k=top)
    check_history(history, search.as_json)
    _check_weights(weight, each, images, bank)
    if sheet is not None:
        check_writable(sheet, images)
    opened = read_images(images, each)
    readable = [path for path, image in zip(images, opened, strict=True) if not isinstance(image, Unreadable)]
    names = images if each else [images[0] if len(images) == 1 else f"{len(images)} images"]
    watching = watch(readable if each else names, search.steps, tensorboard)
    clip = search.load()
    with watching as progress:
        results = _learned(opened, clip, each, weight, bank, bank_use.value, options | watched(progress))
    if each:
        show_many(names, results, search.as_json, history)
    else:
        show_one(results[0], search.as_json, history)
    if sheet is not None:
        drawn = [[] if isinstance(image, Unreadable) else [image] for image in opened] if each else [opened]
        if write_sheet(sheet, [Path(name).name for name in names], drawn, results):
            say(f"sheet written to {sheet}")
    finish(results, search.steps)


def _check_weights(weight: list[float] | None, each: bool, images: list[str], bank: str | None) -> None:
    """Raises ValueError for options that do not go together, and for a bank that cannot be read."""
    if weight and each:
        raise ValueError("--weight and --each exclude each other")
    if weight and len(weight) != len(images):
        raise ValueError(f"--weight must be given once for each of the {len(images)} images; got {len(weight)}")
    if bank is not None:
        from pez_fast.tasks import load_bank

        if weight or (len(images) > 1 and not each):
            raise ValueError("--bank finds phrases for each image alone; give one image, or --each, and no --weight")
        load_bank(bank)


def _learned(
    images: list[Any],
    clip: Any,
    each: bool,
    weight: list[float] | None,
    bank: str | None,
    bank_use: str,
    options: dict[str, Any],
) -> list[PromptResult]:
    """Returns the result of each image, or the one of all."""
    from pez_fast.tasks import invert as invert_all
    from pez_fast.tasks import invert_batch, invert_with_bank

    if bank is not None:
        return invert_with_bank(images, clip, bank, bank_use, **options)
    return invert_batch(images, clip, **options) if each else [invert_all(images, clip, weights=weight, **options)]


@app.command()
@with_search
def distill(
    text: Annotated[str, typer.Argument(help="The prompt to shorten.", metavar="TEXT", show_default=False)],
    search: SearchFlags,
    ratio: Annotated[float | None, option("Tokens of the result divided by tokens of the text. Default: 0.3.")] = None,
    prompt_len: Annotated[int | None, option("Number of tokens, in place of a ratio.")] = None,
    top: Top = SearchConfig.top_k,
    tensorboard: Log = None,
    history: History = False,
) -> None:
    """Learn a shorter prompt that means the same to the model."""
    from pez_fast.tasks import distill as distill_text

    options = search.options(prompt_len=1 if prompt_len is None else prompt_len, top_k=top)
    check_history(history, search.as_json)
    if ratio is not None and prompt_len is not None:
        raise ValueError("--ratio and --prompt-len exclude each other")
    watching = watch([text], search.steps, tensorboard)
    clip = search.load()
    with watching as progress:
        result = distill_text(text, clip, ratio, **options | {"prompt_len": prompt_len}, **watched(progress))
    show_one(result, search.as_json, history)
    finish([result], search.steps)
