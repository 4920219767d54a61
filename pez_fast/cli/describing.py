"""The command `pez-fast describe`: phrases of a bank that fit images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pez_fast._shared.catalog import DEFAULT_MODEL
from pez_fast.cli.app import app
from pez_fast.cli.errors import FAILED
from pez_fast.cli.inputs import read_images
from pez_fast.cli.options import Bank, Cache, Device, Json, Model, Pretrained, SearchFlags, option
from pez_fast.report.console import one_line, print_json, say, table_of, whose
from pez_fast.report.output import put, put_table, stdout

if TYPE_CHECKING:
    from pez_fast.result import Description

MOST_FLAVORS = 8


@app.command()
def describe(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, http(s) addresses, or - for stdin.", metavar="IMAGE", show_default=False),
    ],
    bank: Bank = None,
    max_flavors: Annotated[int, option("The most flavors of a text.")] = MOST_FLAVORS,
    cache: Cache = None,
    model: Model = DEFAULT_MODEL,
    pretrained: Pretrained = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Describe images by phrases of a bank: the best of each list, and a chain of flavors; nothing is learned."""
    from pez_fast.tasks import describe as describe_all
    from pez_fast.tasks import load_bank

    if max_flavors < 0:
        raise ValueError(f"--max-flavors must be an integer, not negative; got {max_flavors}")
    name = Path(model).name if model else model
    phrases = load_bank(bank, name)
    opened = read_images(images, each=len(images) > 1)
    clip = SearchFlags(model=model, pretrained=pretrained, device=device).load()
    told = _Told()
    found = describe_all(opened, clip, phrases, max_flavors=max_flavors, cache=cache, progress=told)
    if as_json:
        print_json([{"image": name, **each.to_dict()} for name, each in zip(images, found, strict=True)])
    elif len(found) == 1:
        put(one_line(found[0].text))
        _say_parts(found[0])
    else:
        _show(images, found)
    if any(each.error for each in found):
        raise typer.Exit(FAILED)


class _Told:
    """Says on stderr how many phrases and images are done: each tenth, if there are many."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if done >= self._next.get(what, 0) and (total > 1 or what != "images"):
            say(f"{done} of {total} {what}")
            self._next[what] = min(total, done + max(1, total // 10))


def _say_parts(found: Description) -> None:
    """Prints the phrases of a text with their cosines on stderr."""
    for part in found.parts:
        say(f"{part.category}: {part.phrase} (alone {part.score:.3f}, the text up to it {part.text_score:.3f})")
    say(f"text cosine {found.score:.4f} ({whose(found.model)})")
    if found.note:
        say(f"pez-fast: note: {found.note}")


def _show(names: Sequence[str], results: Sequence[Any]) -> None:
    """Prints a table of images, texts and cosines on stdout."""
    console, table = stdout(), table_of("image", "phrases", "text cosine")
    for name, found in zip(names, results, strict=True):
        text = Text(one_line(found.error or found.text, console.encoding), style="red" if found.error else "")
        table.add_row(Text(one_line(name, console.encoding)), text, "-" if found.error else f"{found.score:.3f}")
    put_table(console, table)
    say(whose(results[0].model))
    for name, found in zip(names, results, strict=True):
        if found.note:
            say(f"pez-fast: note: {name}: {found.note}")
