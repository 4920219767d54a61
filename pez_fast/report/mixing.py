"""What `pez-fast mix` shows: prompts of single images, these joined, and one for all of them, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text

from pez_fast.report.console import one_line, plain_result, print_json, say, whose
from pez_fast.report.output import put_table, stdout
from pez_fast.report.sheet import Row, draw_sheet, save_sheet
from pez_fast.result import Mix, PromptResult

MOST_COLUMNS = 4  # images with a column of their own


class Way(NamedTuple):
    """One prompt of a mix.

    Attributes:
        name: what it was learned for.
        prompt, error: the text, or why there is none.
        scores: its cosine with each image that could be read.
        note: what is to be said of it, or "".
    """

    name: str
    prompt: str
    error: str | None
    scores: Sequence[float]
    note: str


def ways(names: Sequence[str], mix: Mix) -> Iterator[Way]:
    """Yields the prompts of the images, the joined one and the shared one."""
    for name, result, scores in zip(names, mix.each, mix.each_scores, strict=True):
        yield Way(name, result.prompt, result.error, scores, result.note)
    joined, shared = mix.joined, mix.shared
    order = ", ".join(str(k + 1) for k in joined.order)
    yield Way(f"joined ({order})" if order else "joined", joined.prompt, joined.error, joined.scores, joined.note)
    count = "both" if len(mix.images) == 2 else "all"
    yield Way(f"one for {count}", shared.prompt, shared.error, mix.shared_scores, shared.note)


def show_mix(names: Sequence[str], mix: Mix, as_json: bool, history: bool = False) -> None:
    """Prints a table of the prompts with their cosine with each image and the mean on stdout, or JSON."""
    if as_json:
        each = [{"image": name, **plain_result(r, history)} for name, r in zip(names, mix.each, strict=True)]
        print_json({**mix.to_dict(), "each": each, "shared": plain_result(mix.shared, history)})
        return
    console, table = stdout(), Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    own = [names[k] for k in mix.images]
    columns = own if len(own) <= MOST_COLUMNS else ["lowest"]
    table.add_column("learned for", overflow="fold", max_width=32)
    table.add_column("prompt", overflow="fold", ratio=1)
    for name in [*columns, "mean"]:
        table.add_column(Text(one_line(Path(name).name, console.encoding)), justify="right", overflow="fold")
    for way in ways(names, mix):
        prompt = Text(one_line(way.error or way.prompt, console.encoding), style="red" if way.error else "")
        shown = way.scores if len(columns) == len(own) else [min(way.scores, default=0.0)]
        told = [f"{score:.3f}" for score in [*shown, sum(way.scores) / len(way.scores)]] if way.scores else []
        table.add_row(Text(one_line(way.name, console.encoding)), prompt, *(told or ["-"] * (len(columns) + 1)))
    put_table(console, table)
    say(f"the joined prompt has {mix.joined.tokens} tokens, the one for all {len(mix.shared.ids)} learned ones")
    say(whose(mix.shared.model))
    for way in ways(names, mix):
        if way.note:
            say(f"pez-fast: note: {way.name}: {way.note}")


def write_mix(path: Path, names: Sequence[str], images: Sequence[Sequence[Image.Image]], mix: Mix) -> bool:
    """Draws the prompts of a mix into a PNG file; draws nothing (False) without a prompt."""
    if mix.joined.error and mix.shared.error:
        return False
    together = [images[k][0] for k in mix.images]
    tokens = [token for k in mix.joined.order for token in mix.each[k].tokens]  # shown where none of them was cut
    joined = PromptResult(prompt=mix.joined.prompt, text_score=mix.joined.score, tokens=tokens)
    results = [*mix.each, joined, mix.shared]
    rows = []
    for way, own, result in zip(ways(names, mix), [*images, together, together], results, strict=True):
        told = ", ".join(f"{names[k]} {score:.3f}" for k, score in zip(mix.images, way.scores, strict=False))
        result = PromptResult(**{**vars(result), "error": way.error, "note": way.note})
        rows.append(Row(f"{way.name}: {told}" if len(own) > 1 and told else way.name, own, result))
    shared = mix.shared
    subtitle = f"model {shared.model}, seed {shared.seed}, {shared.steps} steps, {shared.seconds:.1f} s"
    save_sheet(path, draw_sheet(rows, "Prompts joined, and one for all", subtitle))
    return True
