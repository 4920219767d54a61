"""The progress of `pez-fast batch` on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pez_fast.dataset.shards import Row
from pez_fast.report.console import one_line, say, stderr_is_terminal

_SILENCE = 60.0  # seconds without a line after which a finished batch prints one


def last_prompt(rows: Sequence[Row], before: str = "") -> str:
    """Returns the prompt of the last row that has one; `before` if none has."""
    return next((row["prompt"] for row in reversed(rows) if row.get("prompt")), before)


class PlainBatchProgress:
    """Progress for a stderr that is no terminal.

    It prints a line after each tenth of the images, and for a batch that ends more than a minute after the last line.

    Args:
        total: images of the data set.
        finished: images that an earlier run has finished.

    Attributes:
        every: the value for the search's option `every`.
    """

    every = 50

    def __init__(self, total: int, finished: int) -> None:
        self.total, self.finished = total, finished
        self.last = ""
        self._begun, self._finished_before = time.monotonic(), finished
        self._said, self._next = self._begun, finished

    def __enter__(self) -> PlainBatchProgress:
        say(f"{self.finished}/{self.total} images finished")
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def add(self, rows: Sequence[Row]) -> None:
        """Counts rows that are on the disk, and prints a line if one is due."""
        self._count(rows)
        now = time.monotonic()
        if self.finished >= self._next or now - self._said > _SILENCE:
            self._said, self._next = now, min(self.finished + -(-self.total // 10), self.total)
            say(f'{self.finished}/{self.total}  {self.speed()}  "{self.last}"')

    def _count(self, rows: Sequence[Row]) -> None:
        self.finished += len(rows)
        self.last = last_prompt(rows, self.last)

    def speed(self, within: float = 0.0) -> str:
        """Returns the rate of this run and the time left; `within` is the work done on the current batch, in images."""
        done, seconds = self.finished - self._finished_before + within, time.monotonic() - self._begun
        if done <= 0 or seconds <= 0:
            return ""
        left = timedelta(seconds=round((self.total - self.finished - within) * seconds / done))
        return f"{done / seconds:.2f} images/s  {left} left"


class LiveBatchProgress(PlainBatchProgress):
    """Draws on a terminal: a bar that also moves within a batch, the rate, the time left, and the last prompt."""

    def __init__(self, total: int, finished: int) -> None:
        super().__init__(total, finished)
        self._within = 0.0
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("image"), MofNCompleteColumn(), BarColumn(), _Speed(self), console=self._console
        )
        self._task = self._bar.add_task("", total=total, completed=finished)
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveBatchProgress:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def within(self, images: float) -> None:
        """Moves the bar to the work done on the current batch, in images."""
        self._within = images
        self._bar.update(self._task, completed=self.finished + self._within)

    def add(self, rows: Sequence[Row]) -> None:
        """Counts rows that are on the disk."""
        self._count(rows)
        self.within(0.0)

    def speed(self, within: float = 0.0) -> str:
        """Returns the rate and the time left, with the work done on the current batch."""
        return super().speed(self._within)

    def _draw(self) -> Group:
        last = Text(one_line(self.last, self._console.encoding), no_wrap=True, overflow="ellipsis", style="dim")
        return Group(self._bar, last)


class _Speed(ProgressColumn):
    """The column with the rate and the time left."""

    max_refresh = 0.5

    def __init__(self, progress: PlainBatchProgress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.speed(), style="progress.data.speed")


def watch_batch(total: int, finished: int) -> PlainBatchProgress:
    """Returns the progress that suits stderr, as a context manager."""
    return (LiveBatchProgress if stderr_is_terminal() else PlainBatchProgress)(total, finished)
