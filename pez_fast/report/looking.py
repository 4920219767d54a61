"""What the commands that learn nothing print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pez_fast.report.console import one_line, print_json, say, table_of, whose
from pez_fast.report.output import put_table, stdout


def print_scores(
    images: Sequence[str],
    prompts: Sequence[str],
    scores: Sequence[Sequence[float]],
    as_json: bool,
    model: str = "",
    encoders: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> None:
    """Prints the cosine (N, M) of each image with each prompt on stdout, the best prompt of each image first.

    Where several encoders share the prompts, their own cosines, by name, stand beside the mean.
    """
    rows: list[dict[str, Any]] = []
    for n, source in enumerate(images):
        for m in sorted(range(len(prompts)), key=lambda m, own=scores[n]: -own[m]):  # type: ignore[misc]
            rows.append({"image": source, "prompt": prompts[m], "cosine": scores[n][m]})
            if encoders:
                rows[-1]["encoders"] = {name: own[n][m] for name, own in encoders.items()}
    if as_json:
        print_json(rows)
        return
    console, table = stdout(), table_of("image", "prompt", "cosine", *(encoders or ()))
    for row in rows:
        image, prompt = (Text(one_line(row[name], console.encoding)) for name in ("image", "prompt"))
        shown = [row["cosine"], *row.get("encoders", {}).values()]
        table.add_row(image, prompt, *(f"{cosine:.3f}" for cosine in shown))
    put_table(console, table)
    say(whose(model))


def print_info(facts: dict[str, Any]) -> None:
    """Prints the facts of `pez_fast.info` as a table on stdout."""
    console, table = stdout(), Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        for k, (inner, fact) in enumerate(value.items() if isinstance(value, dict) else [("", value)]):
            text = "usable" if fact is True else one_line(fact, console.encoding)
            table.add_row("" if k else name, inner, Text(text))
    put_table(console, table)
