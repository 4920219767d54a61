"""The commands that learn prompts of single images and texts: `demo`, `invert`, `distill`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pez_fast.cli.app import app, check_history, finish, watched
from pez_fast.cli.inputs import Unreadable, read_images
from pez_fast.cli.options import (
    ChooseBy,
    History,
    Json,
    Log,
    PromptLen,
    Referee,
    SearchFlags,
    Seed,
    Top,
    option,
    with_search,
)
from pez_fast.config import SearchConfig
from pez_fast.report.console import say, show_many, show_one
from pez_fast.report.tensorboard import watch

if TYPE_CHECKING:
    from pez_fast.result import PromptResult

DEMO_STEPS, DEMO_LENGTH, DEMO_RESTARTS, DEMO_VOCABULARY = 300, 6, 8, "words"
LANGUAGE_STEPS = 100
Images = Annotated[
    list[str] | None,
    typer.Argument(help="Image files, http(s) addresses, or - for stdin.", metavar="IMAGE", show_default=False),
]
Text = Annotated[list[str] | None, option("A text that the prompt is to be like; can be repeated.")]
Weight = Annotated[
    list[float] | None,
    option("A weight for each target, first the images, then the texts; a negative one pushes the prompt away."),
]


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
    search: SearchFlags,
    images: Images = None,
    text: Text = None,
    each: Annotated[bool, option("Learn a prompt for each image, in place of one for all.", "--each")] = False,
    prompt_len: PromptLen = SearchConfig.prompt_len,
    top: Top = SearchConfig.top_k,
    weight: Weight = None,
    referee: Referee = None,
    choose_by: Annotated[ChooseBy, option("Who chooses among the --top prompts.")] = ChooseBy.model,
    bank: InvertBank = None,
    bank_use: Annotated[BankUse, option("Begin at the phrases, or hold them and learn what follows.")] = BankUse.init,
    sheet: Annotated[
        Path | None, option("Draw images, prompts and scores into this PNG file.", metavar="FILE.png")
    ] = None,
    tensorboard: Log = None,
    history: History = False,
) -> None:
    """Learn a prompt from images and texts: one for all that they share, or with --each one for each image."""
    from pez_fast.report.sheet import check_writable

    options = search.options(prompt_len=prompt_len, top_k=top)
    check_history(history, search.as_json)
    _check_referee(search, referee, choose_by, top)
    images, text = images or [], text or []
    _check_targets(images, text, weight, each)
    _check_bank(bank, len(images), each, bool(text or weight or referee))
    if sheet is not None:
        check_writable(sheet, images)
    opened = read_images(images, each)
    readable = [path for path, image in zip(images, opened, strict=True) if not isinstance(image, Unreadable)]
    names = images if each else [_name_of(images, text)]
    watching = watch(readable if each else names, search.steps, tensorboard)
    clip = search.load()
    options |= {} if referee is None else {"referee": search.load_referee(referee), "choose_by": choose_by.value}
    with watching as progress:
        options |= watched(progress) | ({} if each or bank else {"texts": text, "weights": weight})
        results = _learned(opened, clip, each, (bank, bank_use.value), options)
    if each:
        show_many(names, results, search.as_json, history)
    else:
        show_one(results[0], search.as_json, history)
    if sheet is not None:
        plain = each or (len(images) == 1 and not text)
        _draw(sheet, [Path(name).name for name in images] if plain else names, opened, each, results)
    finish(results, search.steps)


def _learned(
    opened: list[Any], clip: Any, each: bool, bank: tuple[str | None, str], options: dict[str, Any]
) -> list[PromptResult]:
    """Returns the result of each image, or the one of all targets."""
    from pez_fast.tasks import invert as invert_all
    from pez_fast.tasks import invert_batch, invert_with_bank

    if bank[0] is not None:
        return invert_with_bank(opened, clip, *bank, **options)
    return invert_batch(opened, clip, **options) if each else [invert_all(opened, clip, **options)]


def _draw(
    sheet: Path, titles: Sequence[str], opened: Sequence[Any], each: bool, results: Sequence[PromptResult]
) -> None:
    """Draws the images and their prompts into a sheet, a row for each prompt."""
    from pez_fast.report.sheet import write_sheet

    drawn = [[] if isinstance(image, Unreadable) else [image] for image in opened] if each else [opened]
    if write_sheet(sheet, titles, drawn, results):
        say(f"sheet written to {sheet}")


def _check_referee(search: SearchFlags, referee: str | None, choose_by: ChooseBy, top: int) -> None:
    """Raises ValueError if a referee is the model itself, or is to choose where it cannot."""
    search.check_referee(referee)
    if choose_by is ChooseBy.referee and (referee is None or top < 2):
        raise ValueError("--choose-by referee needs --referee MODEL and a --top of at least 2")


def _check_targets(images: Sequence[str], texts: Sequence[str], weights: Sequence[float] | None, each: bool) -> None:
    """Raises ValueError if there is no target, or its weights or its texts cannot be used."""
    from pez_fast.objectives.similarity import checked_weights
    from pez_fast.tasks.checks import checked_texts

    if not images and not texts:
        raise ValueError("Missing argument 'IMAGE'; give at least one image, or a text with --text")
    for name, given in (("--weight", weights), ("--text", texts)):
        if given and each:
            raise ValueError(f"{name} and --each exclude each other")
    checked_texts("--text", texts, may_be_none=True)
    targets = f"{len(images)} images" + (f" and the {len(texts)} texts" if texts else "")
    if weights and len(weights) != len(images) + len(texts):
        raise ValueError(f"--weight must be given once for each of the {targets}; got {len(weights)}")
    if weights:
        checked_weights(weights, len(weights))


def _name_of(images: Sequence[str], texts: Sequence[str]) -> str:
    """Returns what the targets of one prompt are called: a single one by itself, several by their numbers."""
    if len(images) + len(texts) == 1:
        return [*images, *texts][0]
    counts = ((len(images), "image"), (len(texts), "text"))
    return " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts if count)


def _check_bank(bank: str | None, count: int, each: bool, others: bool) -> None:
    """Raises ValueError for options that do not go with a bank, and for a bank that cannot be read."""
    if bank is None:
        return
    from pez_fast.tasks import load_bank

    if others or (count != 1 and not each):
        raise ValueError(
            "--bank finds phrases for each image alone; give one image, or --each, and no --text, --weight or --referee"
        )
    load_bank(bank)


@app.command()
@with_search
def distill(
    text: Annotated[list[str], typer.Argument(help="The prompt to shorten.", metavar="TEXT", show_default=False)],
    search: SearchFlags,
    ratio: Annotated[
        list[float] | None,
        option("Tokens of the result divided by tokens of the text; with --study can be repeated. Default: 0.3."),
    ] = None,
    prompt_len: Annotated[int | None, option("Number of tokens, in place of a ratio.")] = None,
    study: Annotated[
        bool, option("Shorten each TEXT to several ratios, by default 0.7, 0.5, 0.3 and 0.1.", "--study")
    ] = False,
    top: Top = SearchConfig.top_k,
    sheet: Annotated[
        Path | None, option("With --study: draw the curve and the prompts into this PNG file.", metavar="FILE.png")
    ] = None,
    tensorboard: Log = None,
    history: History = False,
) -> None:
    """Learn a shorter prompt that means the same to the model."""
    options = search.options(prompt_len=1 if prompt_len is None else prompt_len, top_k=top)
    check_history(history, search.as_json)
    if ratio and prompt_len is not None:
        raise ValueError("--ratio and --prompt-len exclude each other")
    if study:
        if prompt_len is not None:
            raise ValueError("--study and --prompt-len exclude each other; --ratio can be repeated")
        from pez_fast.cli.studying import distill_all

        del options["prompt_len"]
        return distill_all(text, ratio, search, options, sheet, tensorboard, history)
    if sheet is not None:
        raise ValueError("--sheet has an effect only with --study")
    for name, values, means in (("TEXT", text, "; a text of several words stands in quotes"), ("--ratio", ratio, "")):
        if values and len(values) > 1:
            raise ValueError(f"{name} is given {len(values)} times, which only --study takes{means}")
    from pez_fast.tasks import distill as distill_text

    watching = watch(text, search.steps, tensorboard)
    clip = search.load()
    with watching as progress:
        share = ratio[0] if ratio else None
        result = distill_text(text[0], clip, share, **options | {"prompt_len": prompt_len}, **watched(progress))
    show_one(result, search.as_json, history)
    finish([result], search.steps)
