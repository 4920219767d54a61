"""The command `pez-fast batch`: data sets."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app
from pez_fast.cli.errors import FAILED, INTERRUPTED
from pez_fast.cli.options import Backend, PromptLen, SearchFlags, option, with_search
from pez_fast.config import SearchConfig
from pez_fast.report.console import print_json, say

_SHOWN = 10  # failures that are listed

Shard = Annotated[
    str, option("Learn the i-th of n parts of the images, i from 0; for n runs into one DIR.", metavar="i/n")
]
RetryErrors = Annotated[
    bool, option("Try images again that could not be read, even if they have not changed.", "--retry-errors")
]
Moved = Annotated[bool, option("SOURCE is DIR's data set, at another place than before.", "--moved")]


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
    shard: Shard = "0/1",
    workers: Annotated[int, option("Threads that read images ahead.")] = 4,
    column: Annotated[str | None, option("The column of a Parquet file with the images, as bytes or paths.")] = None,
    engine: Annotated[Backend, option("ray runs on the machines of a Ray cluster, which share DIR.")] = Backend.local,
    actors: Annotated[int, option("Number of processes of --engine ray; each takes a GPU if there are any.")] = 1,
    retry_errors: RetryErrors = False,
    moved: Moved = False,
) -> None:
    """Learn a prompt for each image of a data set; the same command continues it.

    Given again, it learns only images that are new, have changed, or are not finished.

    Exit status: 0 all have prompts, 1 some images could not be read or the disk is full, 2 wrong usage, 130 Ctrl-C.
    """
    from pez_fast.dataset import Job

    if engine is not Backend.ray and actors != 1:
        raise ValueError(f"--actors has an effect only with --engine ray; got {actors}")
    options = search.options(prompt_len=prompt_len, batch_size=batch_size)
    with refuse_full_disk():
        job = Job(source, out, options, shard, workers, column, retry_errors, moved)
        if engine is Backend.ray:
            from pez_fast.ray import run_on_ray

            summary = run_on_ray(job, search.model, search.weights, search.device, actors)
        else:
            summary = job.run(search.load())
    if search.as_json:
        print_json(vars(summary))
    _list_failures(summary.failures, out)
    say(f"{summary.finished} of {summary.images} images finished in {out}, {summary.errors} of them unreadable")
    if summary.interrupted:
        say("pez-fast: interrupted; the same command continues")
        raise typer.Exit(INTERRUPTED)
    if summary.errors:
        raise typer.Exit(FAILED)


@contextmanager
def refuse_full_disk() -> Iterator[None]:
    """Ends the command with a sentence and the exit code FAILED if the disk is full."""
    from pez_fast.dataset import FullDiskError

    try:
        yield
    except FullDiskError as error:
        say(f"pez-fast: error: {error}")
        raise typer.Exit(FAILED) from None


def _list_failures(failures: Mapping[str, str], out: Path) -> None:
    """Prints the first unreadable images with the reasons, and how to see all."""
    for name, why in list(failures.items())[:_SHOWN]:
        say(f"{name}: {why}")
    if len(failures) > _SHOWN:
        command = f"pez-fast export {shlex.quote(str(out))} failures.csv --errors"
        say(f"and {len(failures) - _SHOWN} more; all of them: {command}")
