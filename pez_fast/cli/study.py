"""The command `pez-fast study lengths`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app, watched
from pez_fast.cli.batch import refuse_full_disk
from pez_fast.cli.classify_options import listed
from pez_fast.cli.errors import FAILED, INTERRUPTED
from pez_fast.cli.inputs import read_images
from pez_fast.cli.options import SHARED, SearchFlags, option, with_flags
from pez_fast.report.console import print_json, say
from pez_fast.report.console import watch as watch_console

STUDIED = tuple(name for name in SHARED if name != "seed")

study = typer.Typer(help="Compare prompts over what they were learned with.")
app.add_typer(study, name="study")


@study.command()
@with_flags(SearchFlags, STUDIED, presets=True)
def lengths(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, http(s) addresses, or - for stdin.", metavar="IMAGE", show_default=False),
    ],
    search: SearchFlags,
    referee: Annotated[
        str, option("The second model, which scores the prompts; named as for --model.", metavar="MODEL")
    ],
    out: Annotated[Path, option("Folder of the prompts, and of lengths.csv, .json and .png.", metavar="DIR")],
    lengths: Annotated[str, option("Numbers of learned tokens, such as 2,4,8 or 1-6.")] = "1,2,4,8,16",
    seeds: Annotated[str, option("Seeds, such as 0,1,2 or 0-4.")] = "0",
) -> None:
    """Show over which lengths a prompt fits the model alone, by a second model; the same command continues it."""
    from pez_fast.dataset import LengthJob
    from pez_fast.report.lengths import show_lengths, told, write_lengths

    chosen = listed(lengths, "--lengths", int, "1,2,4 or 1-6"), listed(seeds, "--seeds", int)
    given = [search.options(prompt_len=length, seed=seed) for length in chosen[0] for seed in chosen[1]][0]
    options = {name: value for name, value in given.items() if name not in ("prompt_len", "seed")}
    search.check_referee(referee)
    opened = read_images(images)
    model, second = search.load(), search.load_referee(referee)
    with refuse_full_disk():
        job = LengthJob(opened, model, second, *chosen, out, options, names=images)
        for length in job.lengths:
            missing = job.missing(length)
            if not missing:
                continue
            names = [f"{job.names[number]}, seed {seed}" for _, seed, number in missing]
            say(f"learning {len(names)} prompts of {length} tokens")
            with watch_console(names, search.steps) as progress:
                finished = job.learn(length, **watched(progress))
            if not finished:
                break
    result = job.study
    written = write_lengths(out, result)
    if search.as_json:
        print_json(result.to_dict())
    else:
        show_lengths(result)
    say(f"{told(result)}; cosines of different models cannot be compared")
    say(f"written to {', '.join(map(str, written))}")
    if result.interrupted:
        say("pez-fast: interrupted; the same command continues")
        raise typer.Exit(INTERRUPTED)
    if any(run.error for run in result.runs):
        raise typer.Exit(FAILED)
