"""The command `pez-fast export`: the results of a data set as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app
from pez_fast.cli.batch import refuse_full_disk
from pez_fast.cli.options import Json, option
from pez_fast.report.console import first_names, print_json, say


@app.command()
def export(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of pez-fast batch.", metavar="DIR", show_default=False)
    ],
    file: Annotated[Path, typer.Argument(help="A .csv or .jsonl file.", metavar="FILE", show_default=False)],
    errors: Annotated[bool, option("Only the images that could not be read, with the reasons.", "--errors")] = False,
    as_json: Json = False,
) -> None:
    """Write the results of pez-fast batch, finished or not, as CSV or JSONL; an earlier export is replaced."""
    from pez_fast.dataset import export_rows

    with refuse_full_disk():
        written = export_rows(folder, file, errors)
    if as_json:
        print_json(vars(written))
    say(f"{written.rows} rows written to {file}" + ("" if errors else f", {written.errors} of them without a prompt"))
    if written.missing is None:
        say("the source of the data set cannot be listed now, so images that are still missing cannot be counted")
    elif written.missing:
        say(f"{len(written.missing)} images are still missing: {first_names(written.missing)}")
