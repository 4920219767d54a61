"""Runs that a folder keeps, each in a file of its own that is whole or absent, and the search that learns them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pez_fast._shared.files import write_atomically
from pez_fast.engine import Objective
from pez_fast.prompt_search import PromptSearch, progress_of
from pez_fast.result import PromptResult

R = TypeVar("R")


def learn_runs(
    search: PromptSearch,
    targets: Iterable[tuple[list[int], Objective, int]],
    count: int,
    keep: Callable[[int, PromptResult], object],
) -> bool:
    """Learns runs in batches and hands each to `keep` when it is finished; returns whether all were finished.

    Args:
        search: the search.
        targets: groups of runs: their numbers, an objective with a row for each, and their seed.
        count: the number of runs.
        keep: a function of a run's number and its result. What Ctrl-C or the callback cut short is not kept.
    """
    shown: list[PromptResult | None] = [None] * count
    callback = search.config.callback

    def on_progress(searches: Any) -> object:
        assert callback is not None
        return callback(progress_of(search.stages, search.bound, shown, searches))

    for results in search.stream(targets, on_progress if callback else None):
        for number, result in results:
            if result.stop_reason not in ("interrupt", "callback"):
                shown[number] = result
                keep(number, result)
    return search.stop_reason is None


def write_run(path: Path, text: str) -> None:
    """Writes the JSON of a run into its file."""
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def read_run(path: Path, kind: type[R]) -> R | None:
    """Returns the run in a file, as a dataclass of this kind; None if there is none, or one that cannot be read."""
    try:
        values = json.loads(path.read_text("utf-8"))
        known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
        return kind(**{name: value for name, value in values.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
