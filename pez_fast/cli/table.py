"""What `pez-fast models` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from pez_fast._shared.catalog import CATALOG, JOINT, Entry, close_names, find, size_of
from pez_fast.report.console import print_json
from pez_fast.report.output import put_table, stdout


def entries_of(name: str) -> list[Entry]:
    """Returns the model with a short name, the encoders of a generator, or the models with a name of open_clip's.

    Raises:
        ValueError: there is none; the sentence has the close ones.
    """
    found = [entry for entry in map(find, JOINT.get(name, (name,))) if entry is not None]
    entries = found or [entry for entry in CATALOG if entry.model == name]
    if not entries:
        close = close_names(name)
        hint = f"did you mean {', '.join(close)}?" if close else f"they are {', '.join(e.name for e in CATALOG)}"
        raise ValueError(f"NAME must be a short name of a model; got {name!r}; {hint}")
    return entries


def print_models(entries: Sequence[Entry], seconds: Sequence[float], measured: bool, as_json: bool) -> None:
    """Prints a table of models on stdout, or a list in JSON, with the seconds that an image takes."""
    if as_json:
        print_json([_values(entry, taken, measured) for entry, taken in zip(entries, seconds, strict=True)])
        return
    console, table = stdout(), Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("name", "model of open_clip"):
        table.add_column(title, overflow="fold", no_wrap=console.width >= 80)
    table.add_column("for", overflow="fold")
    for title in ("download", "memory", "seconds"):
        table.add_column(title, justify="right")
    table.add_column("here")
    for entry, taken in zip(entries, seconds, strict=True):
        download = size_of(entry.download_bytes) if entry.repository else "-"
        here = "yes" if entry.is_here() else "no"
        where = f"{entry.model}\n{entry.pretrained}" if entry.pretrained else "-"
        memory = size_of(entry.memory_bytes)
        table.add_row(entry.name, where, entry.purpose, download, memory, _rounded(taken), here)
    put_table(console, table)


def _values(entry: Entry, seconds: float, measured: bool) -> dict[str, object]:
    return {
        "name": entry.name,
        "model": entry.model,
        "pretrained": entry.pretrained,
        "for": entry.purpose,
        "parameters": entry.parameters,
        "download_bytes": entry.download_bytes,
        "memory_bytes": entry.memory_bytes,
        "seconds_per_image": float(f"{seconds:.2g}"),
        "seconds_are": "measured" if measured else "estimated",
        "is_here": entry.is_here(),
    }


def _rounded(seconds: float) -> str:
    return f"{float(f'{seconds:.2g}'):.0f}" if seconds >= 10 else f"{seconds:.1f}"
