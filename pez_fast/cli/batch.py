"""The command `pez-fast batch`: data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app
from pez_fast.cli.errors import FAILED, INTERRUPTED
from pez_fast.cli.options import Backend, PromptLen, SearchFlags, option, with_search
from pez_fast.config import SearchConfig
from pez_fast.report.console import print_json, say


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
