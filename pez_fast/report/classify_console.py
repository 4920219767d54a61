"""What the commands of `pez-fast classify` print: accuracies, tables of confusion, transfer and sweeps."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from pez_fast.objectives import split_score
from pez_fast.report.console import one_line, say
from pez_fast.report.output import put_table, stdout
from pez_fast.result import ClassifierResult, ClassifierScores

if TYPE_CHECKING:
    from pez_fast.config import Progress

ALONE = "(template alone)"


@dataclass
class Transferred:
    """How a prompt serves another model on the rows to test on.

    Attributes:
        model: the model's name.
        alone, prompt: the scores of the template alone and of the prompt; None where there is an error.
        error: None, or why there are no scores.
    """

    model: str
    alone: ClassifierScores | None = None
    prompt: ClassifierScores | None = None
    error: str | None = None


class Accuracies:
    """A callback that hands on what a search has found with accuracies in place of scores.

    Args:
        progress: the callback that is called.
        held_out: the number of examples that the scores are of.

    Attributes:
        every: the value for the search's option `every`.
    """

    def __init__(self, progress: Any, held_out: int) -> None:
        self.every: int = progress.every
        self._progress: Callable[[Progress], object] = progress
        self._held_out = held_out

    def __call__(self, state: Progress) -> object:
        """Calls the other callback; returns its answer."""
        scores = [split_score(s, self._held_out)[0] if math.isfinite(s) else math.nan for s in state.scores]
        return self._progress(dataclasses.replace(state, scores=scores))


def say_learned(result: ClassifierResult) -> None:
    """Prints on stderr how a learned prompt does on the held-out examples."""
    shown = f", perplexity {result.perplexity:.0f}" if result.perplexity is not None else ""
    say(f"held-out accuracy {result.accuracy:.4f}, loss {result.loss:.4f}{shown} ({result.held_out} examples)")


def say_tested(what: str, prompt: ClassifierScores, alone: ClassifierScores) -> None:
    """Prints on stderr the accuracy of a prompt, with that of the template alone beside it."""
    size = len(prompt.predictions)
    say(f"{what} {prompt.accuracy:.4f}; {alone.accuracy:.4f} with the template alone ({size} examples)")


def without_predictions(scores: ClassifierScores | None) -> dict[str, Any] | None:
    """Returns scores as plain values, without what each example got."""
    if scores is None:
        return None
    return {name: value for name, value in scores.to_dict().items() if name != "predictions"}


def transferred_values(found: Transferred) -> dict[str, Any]:
    """Returns a transfer as plain values."""
    alone, prompt = without_predictions(found.alone), without_predictions(found.prompt)
    return {"model": found.model, "template_alone": alone, "prompt": prompt, "error": found.error}


def show_scores(scores: ClassifierScores) -> None:
    """Prints accuracy, loss, perplexity and the table of confusion on stdout."""
    console = stdout()
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    size = len(scores.predictions)
    right = sum(row[k] for k, row in enumerate(scores.confusion))
    facts.add_row("accuracy", f"{scores.accuracy:.4f}  ({right} of {size} examples)")
    facts.add_row("loss", f"{scores.loss:.4f}")
    facts.add_row("perplexity", "-" if scores.perplexity is None else f"{scores.perplexity:.1f}")
    put_table(console, facts)
    names = [Text(one_line(name, console.encoding)) for name in scores.labels]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title="predicted", title_style="")
    table.add_column("label", overflow="fold", max_width=24)
    for name in names:
        table.add_column(name, justify="right", overflow="fold", max_width=16)
    for k, (name, row) in enumerate(zip(names, scores.confusion, strict=True)):
        table.add_row(name, *(Text(str(count), style="bold" if j == k else "") for j, count in enumerate(row)))
    put_table(console, table)


def show_transfer(prompts: Sequence[str], models: Sequence[str], scores: Sequence[ClassifierScores]) -> None:
    """Prints the accuracy of each prompt with each model on stdout; `scores` go model by model."""
    console, table = stdout(), Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("prompt", overflow="fold", ratio=1)
    for model in models:
        table.add_column(Text(one_line(model, console.encoding)), justify="right", overflow="fold")
    for k, prompt in enumerate(prompts):
        found = [scores[len(prompts) * m + k].accuracy for m in range(len(models))]
        shown = Text(one_line(prompt, console.encoding)) if prompt else Text(ALONE, style="dim")
        table.add_row(shown, *(f"{accuracy:.4f}" for accuracy in found))
    put_table(console, table)


@dataclass(frozen=True)
class Swept:
    """The runs of a sweep that differ by their seeds alone.

    Attributes:
        prompt_len, shots, fluency: what they share; shots is None for all examples.
        results: one for each finished seed.
    """

    prompt_len: int
    shots: int | None
    fluency: float
    results: Sequence[ClassifierResult]

    def to_dict(self) -> dict[str, Any]:
        """Returns means and standard deviations as plain values, None where there are too few runs."""
        accuracy = mean_and_deviation([result.accuracy for result in self.results])
        perplexity = mean_and_deviation([r.perplexity for r in self.results if r.perplexity is not None])
        return {
            "prompt_len": self.prompt_len,
            "shots": self.shots,
            "fluency": self.fluency,
            "count": len(self.results),
            "accuracy": accuracy[0],
            "accuracy_deviation": accuracy[1],
            "perplexity": perplexity[0],
            "perplexity_deviation": perplexity[1],
        }


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Returns the mean and the standard deviation of a sample; None for what its size does not give."""
    kept = [value for value in values if math.isfinite(value)]
    return statistics.fmean(kept) if kept else None, statistics.stdev(kept) if len(kept) > 1 else None


def show_sweep(groups: Sequence[Swept]) -> None:
    """Prints accuracy and perplexity of each combination on stdout: mean ± standard deviation over the seeds."""
    console, table = stdout(), Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("length", "shots", "λ", "accuracy", "perplexity", "runs"):
        table.add_column(one_line(title, console.encoding), justify="right")
    for group in groups:
        values = group.to_dict()
        accuracy = _with_deviation(values["accuracy"], values["accuracy_deviation"], 4)
        perplexity = _with_deviation(values["perplexity"], values["perplexity_deviation"], 1)
        shots = "all" if group.shots is None else str(group.shots)
        shown = (one_line(text, console.encoding) for text in (accuracy, perplexity))
        table.add_row(str(group.prompt_len), shots, f"{group.fluency:g}", *shown, str(values["count"]))
    put_table(console, table)


def _with_deviation(mean: float | None, deviation: float | None, decimals: int) -> str:
    if mean is None:
        return "-"
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")
