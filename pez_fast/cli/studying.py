"""What `pez-fast distill --study` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pez_fast.cli.app import finish, watched
from pez_fast.cli.options import SearchFlags
from pez_fast.report.console import PROMPTS, say
from pez_fast.report.recipes_console import show_study
from pez_fast.report.tensorboard import watch


def distill_all(
    texts: Sequence[str],
    ratios: Sequence[float] | None,
    search: SearchFlags,
    options: dict[str, Any],
    sheet: Path | None,
    tensorboard: Path | None,
    history: bool,
) -> None:
    """Shortens each text to each ratio, prints the table, and draws the curve if a sheet is asked for."""
    from pez_fast.report.distill_sheet import write_study
    from pez_fast.report.sheet import check_writable
    from pez_fast.tasks import distill_study
    from pez_fast.tasks.ratios import RATIOS

    texts, shares = list(dict.fromkeys(texts)), list(dict.fromkeys(ratios or RATIOS))
    if sheet is not None:
        check_writable(sheet)
    names = [f"{ratio:g} of {text}" for text in texts for ratio in shares]
    watching = watch(names, search.steps, tensorboard, PROMPTS)
    clip = search.load()
    with watching as progress:
        rows = distill_study(texts, clip, shares, **options, **watched(progress))
    show_study(rows, search.as_json, history)
    if sheet is not None and write_study(sheet, rows):
        say(f"sheet written to {sheet}")
    finish([row.result for row in rows], search.steps)
