"""Times of steps taken in turn, beside a plain loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from provenance import now

Key = tuple[str, int, str]  # what runs, how many prompts, dtype


def timed(work: Callable[[], Any], per: int) -> float:
    """Returns the milliseconds of one step of one prompt."""
    begun = now()
    work()
    return (now() - begun) * 1e3 / per


def times_in_turn(works: dict[Key, tuple[Callable[[], Any], int]], repeats: int) -> dict[Key, list[float]]:
    """Returns the times of works with their numbers of steps and prompts, taken in turn so that all see one machine."""
    times: dict[Key, list[float]] = {key: [] for key in works}
    for repeat in range(repeats + 1):
        for key, (work, per) in works.items():
            found = timed(work, per)
            times[key] += [found] if repeat else []  # the first round warms up
    return times


def compared(times: dict[Key, list[float]], plain: Key, **facts: Any) -> list[dict[str, Any]]:
    """Returns a row for each work with its ratio to the plain one, and prints them; `facts` stand in every row."""
    base, rows = statistics.median(times[plain]), []
    for (name, count, dtype), found in times.items():
        fifths, middle = statistics.quantiles(found, n=5), statistics.median(found)
        row = {"name": name, "prompts": count, "dtype": dtype, **facts}
        row |= {"ms_per_step_and_prompt": middle, "q20": fifths[0], "q80": fifths[3], "ratio": base / middle}
        rows.append(row)
        shown = f"{name}, {count} prompt{'s' * (count > 1)}, {dtype}"
        print(f"{shown:34} {middle:9.1f} ms ({fifths[0]:.1f} to {fifths[3]:.1f})  {base / middle:6.1f} x", flush=True)
    return rows
