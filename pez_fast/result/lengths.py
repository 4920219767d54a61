"""What a study of prompt lengths returns."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pez_fast.result.plain import Plain


@dataclass
class LengthRun:
    """A prompt of a study of lengths.

    Attributes:
        image: the picture's name.
        picture: a digest of its pixels.
        prompt_len, seed: what distinguishes the run from the picture's others.
        prompt, ids, text_score, referee_score: as in `PromptResult`.
        error: None, or one sentence that says why there is no prompt.
    """

    image: str
    picture: str
    prompt_len: int
    seed: int
    prompt: str = ""
    ids: list[int] = field(default_factory=list, repr=False)
    text_score: float = float("nan")
    referee_score: float = float("nan")
    error: str | None = None


@dataclass
class Spread:
    """A score over pictures, each the mean of its seeds: the mean, and the quartiles."""

    mean: float
    low: float
    high: float


@dataclass
class LengthRow:
    """What a study found at one length.

    Attributes:
        prompt_len, pictures, prompts: the length, and how many pictures and prompts were learned.
        model, referee: the cosines by the model that learned the prompts and by the referee.
        referee_change: the mean change of the referee's cosine against the length before, over the pictures of both.
        referee_rises: the share of these pictures whose referee's cosine is higher than at the length before.
    """

    prompt_len: int
    pictures: int
    prompts: int
    model: Spread
    referee: Spread
    referee_change: float | None = None
    referee_rises: float | None = None


@dataclass
class LengthStudy(Plain):
    """Prompts of several lengths, scored by the model that learned them and by a referee.

    Attributes:
        model, referee: the models' names. Their cosines cannot be compared with one another.
        runs: the finished prompts, by length, seed and picture.
        interrupted: whether Ctrl-C or the callback ended the study; the same call continues it.
    """

    model: str
    referee: str
    runs: list[LengthRun] = field(repr=False)
    interrupted: bool = False

    def table(self) -> list[LengthRow]:
        """Returns a row for each length, by rising length."""
        rows: list[LengthRow] = []
        before: dict[str, float] = {}
        for length in sorted({run.prompt_len for run in self.runs if not run.error}):
            runs = [run for run in self.runs if run.prompt_len == length and not run.error]
            model = _by_picture(runs, lambda run: run.text_score)
            referee = _by_picture(runs, lambda run: run.referee_score)
            row = LengthRow(length, len(model), len(runs), _spread(model.values()), _spread(referee.values()))
            changes = [score - before[picture] for picture, score in referee.items() if picture in before]
            if changes:
                row.referee_change = statistics.fmean(changes)
                row.referee_rises = sum(change > 0 for change in changes) / len(changes)
            rows.append(row)
            before = referee
        return rows

    def best_length(self) -> int | None:
        """Returns the length with the referee's highest mean, the shortest of equal ones; None without a prompt.

        Longer prompts over-fit where the model's cosine goes on rising and the referee's does not.
        """
        rows = self.table()
        return max(rows, key=lambda row: row.referee.mean).prompt_len if rows else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the study as a dict of plain values."""
        rows = [dataclasses.asdict(row) for row in self.table()]
        runs = [dataclasses.asdict(run) for run in self.runs]
        names = {"model": self.model, "referee": self.referee, "interrupted": self.interrupted}
        return {**names, "best_length": self.best_length(), "table": rows, "runs": runs}


def _by_picture(runs: Sequence[LengthRun], score: Callable[[LengthRun], float]) -> dict[str, float]:
    """Returns for each picture the mean score of its runs."""
    pictures = dict.fromkeys(run.picture for run in runs)
    return {picture: statistics.fmean(score(run) for run in runs if run.picture == picture) for picture in pictures}


def _spread(values: Iterable[float]) -> Spread:
    """Returns the mean and the quartiles."""
    values = list(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(statistics.fmean(values), low, high)
