"""What `distill --study` and `style` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pez_fast.report.console import one_line, plain_result, print_json, say, whose
from pez_fast.report.output import put_table, stdout
from pez_fast.result import Distilled, PromptResult, StyledPrompt


def show_study(rows: Sequence[Distilled], as_json: bool, history: bool = False) -> None:
    """Prints a table of ratios, tokens, cosines and prompts on stdout, a part for each text, or a list in JSON."""
    if as_json:
        print_json([{**vars(row), "result": plain_result(row.result, history)} for row in rows])
        return
    console, table = stdout(), _table("tokens", "ratio", "cosine")
    table.add_column("prompt", overflow="fold", ratio=1)
    last = None
    for row in rows:
        if row.text != last:
            last = row.text
            table.add_row(str(row.text_tokens), "", "", Text(one_line(row.text, console.encoding), style="bold"))
        result = row.result
        if result.error:
            table.add_row("-", f"{row.ratio:g}", "-", Text(one_line(result.error, console.encoding), style="red"))
        else:
            prompt = Text(one_line(result.prompt, console.encoding))
            table.add_row(str(len(result.ids)), f"{row.ratio:g}", f"{result.text_score:.3f}", prompt)
    put_table(console, table)
    _say_model([row.result for row in rows])


def show_styled(style: PromptResult, prompts: Sequence[StyledPrompt], as_json: bool, history: bool = False) -> None:
    """Prints the style and the new prompts with their cosines on stdout, or one object in JSON."""
    if as_json:
        values = plain_result(style, history)
        print_json({"style": values, "prompts": [prompt.to_dict() for prompt in prompts]})
        return
    console, table = stdout(), _table("cosine", "other order", "subject alone")
    table.add_column("prompt", overflow="fold", ratio=1)
    if not style.error:
        table.add_row(f"{style.text_score:.3f}", "", "", Text(one_line(style.prompt, console.encoding), style="bold"))
    for each in prompts:
        cosines = (f"{value:.3f}" for value in (each.score, each.other_score, each.subject_score))
        table.add_row(*cosines, Text(one_line(each.prompt, console.encoding)))
    put_table(console, table)
    _say_model([style])


def _table(*numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _say_model(results: Sequence[PromptResult]) -> None:
    """Says on stderr whose cosines these are, and what is to be kept in mind."""
    learned: list[Any] = [result for result in results if not result.error]
    if learned:
        say(whose(learned[0].model))
    for note in dict.fromkeys(result.note for result in learned if result.note):
        say(f"pez-fast: note: {note}")
