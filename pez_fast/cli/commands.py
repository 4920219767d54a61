"""The command `pez-fast`. It prints results on stdout and all else on stderr, and imports torch only if it must."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pez_fast import __version__
from pez_fast.cli.errors import FAILED, INTERRUPTED, Group
from pez_fast.cli.options import (
    PAPER_MODEL,
    Backend,
    Device,
    Json,
    Log,
    Model,
    Pretrained,
    PromptLen,
    SearchFlags,
    Seed,
    Steps,
    Top,
    option,
    with_search,
)
from pez_fast.config import SearchConfig
from pez_fast.report.console import (
    LiveProgress,
    PlainProgress,
    print_info,
    print_json,
    print_scores,
    say,
    show_many,
    show_one,
)
from pez_fast.report.tensorboard import TensorBoard, watch

if TYPE_CHECKING:
    from pez_fast.result import PromptResult

DEMO_LENGTH, DEMO_RESTARTS = 8, 8

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Annotated[bool, option("Print the version.", "--version")] = False) -> None:
    """Learn prompts, made of real words, from images and texts (PEZ)."""
    if version:
        print(f"pez-fast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    steps: Steps = 300,
    seed: Seed = SearchConfig.seed,
    out: Annotated[Path, option("File of the sheet.", metavar="FILE.png")] = Path("pez_fast_demo.png"),
    as_json: Json = False,
) -> None:
    """Learn a prompt for each of the example images with the small bundled model, and draw a sheet of them."""
    from pez_fast.images import load_image
    from pez_fast.models.loading import BUNDLED
    from pez_fast.report.sheet import check_writable, write_sheet
    from pez_fast.tasks import invert_batch

    search = SearchFlags(model="emoji", config={"steps": steps, "seed": seed, "restarts": DEMO_RESTARTS})
    options = search.options(prompt_len=DEMO_LENGTH)
    check_writable(out)
    files = sorted((BUNDLED["emoji"] / "images").glob("*.png"))
    if not files:
        raise ValueError("the bundled model and its images are not part of this installation")
    names, images = [file.stem for file in files], [load_image(file) for file in files]
    clip = search.load()
    with watch(names, steps) as progress:
        results = invert_batch(images, clip, **options, **_watched(progress))
    show_many(names, results, as_json)
    if write_sheet(out, names, [[image] for image in images], results):
        say(f"sheet written to {out}")
    _finish(results, steps)


@app.command()
@with_search
def invert(
    images: Annotated[list[str], typer.Argument(help="Image files.", metavar="IMAGE", show_default=False)],
    search: SearchFlags,
    each: Annotated[bool, option("Learn a prompt for each image, in place of one for all.", "--each")] = False,
    prompt_len: PromptLen = SearchConfig.prompt_len,
    top: Top = SearchConfig.top_k,
    weight: Annotated[
        list[float] | None, option("A weight for each image; a negative one pushes the prompt away from it.")
    ] = None,
    sheet: Annotated[
        Path | None, option("Draw images, prompts and scores into this PNG file.", metavar="FILE.png")
    ] = None,
    tensorboard: Log = None,
) -> None:
    """Learn a prompt from images: one for all that they share, or with --each one for each."""
    from pez_fast.images import load_image
    from pez_fast.report.sheet import check_writable, write_sheet
    from pez_fast.tasks import invert as invert_all
    from pez_fast.tasks import invert_batch

    options = search.options(prompt_len=prompt_len, top_k=top)
    if weight and each:
        raise ValueError("--weight and --each exclude each other")
    if weight and len(weight) != len(images):
        raise ValueError(f"--weight must be given once for each of the {len(images)} images; got {len(weight)}")
    opened = [_image_or_path(path) if each else load_image(path) for path in images]
    if sheet is not None:
        check_writable(sheet, images)
    readable = [path for path, image in zip(images, opened, strict=True) if image is not path]
    names = images if each else [images[0] if len(images) == 1 else f"{len(images)} images"]
    watching = watch(readable if each else names, search.steps, tensorboard)
    clip = search.load()
    with watching as progress:
        if each:
            results = invert_batch(opened, clip, **options, **_watched(progress))
        else:
            results = [invert_all(opened, clip, weights=weight, **options, **_watched(progress))]
    if each:
        show_many(names, results, search.as_json)
    else:
        show_one(results[0], search.as_json)
    if sheet is not None:
        drawn = [[i] if i is not path else [] for i, path in zip(opened, images, strict=True)] if each else [opened]
        if write_sheet(sheet, [Path(name).name for name in names], drawn, results):
            say(f"sheet written to {sheet}")
    _finish(results, search.steps)


@app.command()
@with_search
def batch(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder, a text file of paths, a .parquet or .tar file.", metavar="SOURCE", show_default=False
        ),
    ],
    search: SearchFlags,
    out: Annotated[
        Path, option("Folder of the results: Parquet files and a manifest of how they were made.", metavar="DIR")
    ],
    prompt_len: PromptLen = SearchConfig.prompt_len,
    batch_size: Annotated[int, option("Prompts (images times restarts) learned at once.")] = 64,
    shard: Annotated[
        str, option("Learn every n-th image from the i-th on, i from 0; for n runs into one DIR.", metavar="i/n")
    ] = "0/1",
    workers: Annotated[int, option("Threads that read images ahead.")] = 4,
    column: Annotated[str | None, option("The column of a Parquet file with the images, as bytes or paths.")] = None,
    engine: Annotated[Backend, option("ray runs on the machines of a Ray cluster, which share DIR.")] = Backend.local,
    actors: Annotated[int, option("Number of processes of --engine ray; each takes a GPU if there are any.")] = 1,
) -> None:
    """Learn a prompt for each image of a data set; the same command continues it."""
    from pez_fast.dataset import Job

    if engine is not Backend.ray and actors != 1:
        raise ValueError(f"--actors has an effect only with --engine ray; got {actors}")
    job = Job(source, out, search.options(prompt_len=prompt_len, batch_size=batch_size), shard, workers, column)
    if engine is Backend.ray:
        from pez_fast.ray import run_on_ray

        summary = run_on_ray(job, search.model, search.weights, search.device, actors)
    else:
        summary = job.run(search.load())
    if search.as_json:
        print_json(vars(summary))
    say(f"{summary.finished} of {summary.images} images finished in {out}, {summary.errors} of them unreadable")
    if summary.interrupted:
        say("pez-fast: interrupted; the same command continues")
        raise typer.Exit(INTERRUPTED)
    if summary.errors:
        raise typer.Exit(FAILED)


@app.command()
@with_search
def distill(
    text: Annotated[str, typer.Argument(help="The prompt to shorten.", metavar="TEXT", show_default=False)],
    search: SearchFlags,
    ratio: Annotated[float | None, option("Tokens of the result divided by tokens of the text. Default: 0.3.")] = None,
    prompt_len: Annotated[int | None, option("Number of tokens, in place of a ratio.")] = None,
    top: Top = SearchConfig.top_k,
    tensorboard: Log = None,
) -> None:
    """Learn a shorter prompt that means the same to the model."""
    from pez_fast.tasks import distill as distill_text

    options = search.options(prompt_len=1 if prompt_len is None else prompt_len, top_k=top)
    if ratio is not None and prompt_len is not None:
        raise ValueError("--ratio and --prompt-len exclude each other")
    watching = watch([text], search.steps, tensorboard)
    clip = search.load()
    with watching as progress:
        result = distill_text(text, clip, ratio, **options | {"prompt_len": prompt_len}, **_watched(progress))
    show_one(result, search.as_json)
    _finish([result], search.steps)


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


def _image_or_path(path: str) -> Any:
    """Returns the image, or its path if it cannot be read; the task then makes the result that says why."""
    from pez_fast.images import load_image

    try:
        return load_image(path)
    except ValueError:
        return path


def _watched(progress: PlainProgress | LiveProgress | TensorBoard) -> dict[str, Any]:
    """Returns the options that make a search call `progress`."""
    return {"callback": progress, "every": progress.every}


def _finish(results: Sequence[PromptResult], steps: int) -> None:
    """Says whether the search was interrupted, and exits with the code for interruptions or errors."""
    if any(result.stop_reason == "interrupt" for result in results):
        say(f"pez-fast: interrupted after {max(r.steps for r in results)} of {steps} steps; this is the best so far")
        raise typer.Exit(INTERRUPTED)
    if any(result.error for result in results):
        raise typer.Exit(FAILED)


def main() -> None:
    """Runs the command line."""
    app()
