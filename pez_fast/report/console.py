"""What the command line shows: the progress of a search on stderr and its results on stdout."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pez_fast.report.output import put, put_table, stdout
from pez_fast.report.tokens import pieces
from pez_fast.result import finite_or_none

SHADE = "grey93 on grey30"  # of every other token; both colours are set, so that it suits any terminal

if TYPE_CHECKING:
    from pez_fast.config import Progress as State
    from pez_fast.result import PromptResult


class Words(NamedTuple):
    """How targets and scores are called.

    Attributes:
        target, targets: one that a prompt is learned for, and several.
        score: what a score is.
    """

    target: str
    targets: str
    score: str


IMAGES, CLASSIFIERS = Words("image", "images", "cosine"), Words("prompt", "prompts", "accuracy")
PROMPTS = Words("prompt", "prompts", "cosine")


def one_line(text: object, encoding: str = "utf-8") -> str:
    """Returns a text that one line can show.

    Escapes replace the characters that a terminal would act on and those that the encoding lacks.
    """

    def escaped(character: str) -> str:
        return (
            character.encode("unicode_escape").decode()
            if unicodedata.category(character) in ("Cc", "Zl", "Zp")
            else character
        )

    return "".join(map(escaped, str(text))).encode(encoding, "backslashreplace").decode(encoding)


def first_names(names: Sequence[str], most: int = 10) -> str:
    """Returns the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def say(text: object) -> None:
    """Prints one line on stderr, without colours."""
    if sys.stderr is not None:
        print(one_line(text), file=sys.stderr, flush=True)


def stderr_is_terminal() -> bool:
    """Returns whether stderr is a terminal that can draw lines anew."""
    return sys.stderr is not None and sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


class PlainProgress:
    """A callback for a stderr that is no terminal.

    It prints a line after each tenth of the steps, and after each eighth step of the later stages.

    Args:
        names: the names of the prompts.
        steps: updates of the first stage.
        words: how targets and scores are called.

    Attributes:
        every: the value for the search's option `every`.
    """

    def __init__(self, names: Sequence[str], steps: int, words: Words = IMAGES) -> None:
        self.every, self._words = _every(steps), words
        self._next, self._tenth = 0, math.ceil(steps / 10)

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __call__(self, state: State) -> None:
        """Prints a line if one is due."""
        refining = state.step == state.steps and state.refined > 0
        if refining:
            if state.refined % 8:
                return
        elif state.step < min(self._next, state.steps):
            return
        self._next = state.step + self._tenth
        line = f"refine {state.refined}  best " if refining else f"step {state.step}/{state.steps}  best "
        if len(state.scores) == 1:
            say(f'{line}{state.scores[0]:.2f}  "{state.prompts[0]}"')
        else:
            scores = [score for score in state.scores if not math.isnan(score)]
            told = f"{min(scores):.2f} to {max(scores):.2f}" if scores else "nothing yet"
            say(f"{line}{told} for {len(scores)} {self._words.targets}")


def _every(steps: int) -> int:
    """Returns the steps between two calls: few enough for an eye and for patience, many enough to cost nothing."""
    return max(1, min(10, steps // 100))


class _Rate(ProgressColumn):
    """The column with the number of steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "", style="progress.data.speed")


class LiveProgress:
    """A callback that draws on a terminal: a bar, and the best prompt so far for each name.

    Args and attributes: as for `PlainProgress`.
    """

    def __init__(self, names: Sequence[str], steps: int, words: Words = IMAGES) -> None:
        self.every, self._words = _every(steps), words
        self._names = names
        self._state: State | None = None
        self._console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("step", total=steps)
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def __call__(self, state: State) -> None:
        self._state = state
        refining = state.step == state.steps and state.refined > 0
        self._bar.update(
            self._task, completed=state.step, description=f"refine {state.refined}" if refining else "step"
        )

    def _draw(self) -> Group:
        """Returns the bar and the table of the names that fit into the terminal."""
        state, room = self._state, max(1, self._console.height - 7)
        table = table_of(self._words.target, "best prompt so far", self._words.score)
        table.width = min(self._console.width, 120)  # a fixed width, so that columns do not move with the prompts
        encoding = self._console.encoding
        for k, name in enumerate(self._names[:room]):
            prompt, score = (
                (state.prompts[k], f"{state.scores[k]:.3f}") if state and not math.isnan(state.scores[k]) else ("", "")
            )
            line = Text(one_line(prompt, encoding), no_wrap=len(self._names) > 1)
            line.overflow = "ellipsis" if "utf" in encoding else "crop"
            table.add_row(Text(one_line(name, encoding)), line, score)
        more = len(self._names) - room
        return Group(self._bar, table, *([Text(f"  and {more} more", style="dim")] if more > 0 else []))


def watch(names: Sequence[str], steps: int, words: Words = IMAGES) -> PlainProgress | LiveProgress:
    """Returns the callback that suits stderr, as a context manager.

    Args:
        names: the names of the prompts.
        steps: updates of the first stage.
        words: how targets and scores are called.
    """
    return (LiveProgress if stderr_is_terminal() else PlainProgress)(names, steps, words)


def show_one(result: PromptResult, as_json: bool, history: bool = False) -> None:
    """Prints the prompt alone on stdout (the best ones, one per line), so that a script can take it, or JSON."""
    if as_json:
        print_json(plain_result(result, history))
        return
    show_prompts(result)
    if len(result.top) > 1:
        say(f"text cosines {', '.join(f'{candidate.text_score:.4f}' for candidate in result.top)}")
    told = f"text cosine {result.text_score:.4f}, {result.steps} steps in {result.seconds:.1f} s"
    say(f"{told} ({whose(result.model)})")
    if result.referee_score is not None:
        scores = (
            [candidate.referee_score for candidate in result.top] if len(result.top) > 1 else [result.referee_score]
        )
        told = ", ".join(f"{score:.4f}" for score in scores if score is not None)
        say(f"referee's cosine{'s' * (len(scores) > 1)} {told} ({result.referee})")
    _say_notes([result])


def show_prompts(result: PromptResult) -> None:
    """Prints the prompt, or the best ones, on stdout: one in each line, on a terminal with its tokens shaded."""
    best: Sequence[Any] = result.top or [result]
    console = stdout()
    if console.is_terminal:
        for candidate in best:
            console.print(_shaded(candidate, console.encoding), soft_wrap=True)
    else:
        put("\n".join(one_line(candidate.prompt) for candidate in best))


def show_many(names: Sequence[str], results: Sequence[PromptResult], as_json: bool, history: bool = False) -> None:
    """Prints a table of images, prompts (or errors) and text cosines on stdout, or a list in JSON."""
    if as_json:
        print_json(
            [{"image": name, **plain_result(result, history)} for name, result in zip(names, results, strict=True)]
        )
        return
    console, table = stdout(), table_of("image", "learned prompt", "text cosine")
    judged = next((result.referee for result in results if result.referee), "")
    if judged:
        table.add_column("referee", justify="right", no_wrap=True)
    for name, result in zip(names, results, strict=True):
        name = one_line(name, console.encoding)
        if result.error:
            table.add_row(Text(name), Text(one_line(result.error, console.encoding), style="red"), "-")
        best: Sequence[Any] = [] if result.error else result.top or [result]
        for k, candidate in enumerate(best):
            prompt = _shaded(candidate, console.encoding)
            second = "-" if candidate.referee_score is None else f"{candidate.referee_score:.3f}"
            table.add_row(Text("" if k else name), prompt, f"{candidate.text_score:.3f}", *([second] if judged else []))
    put_table(console, table)
    learned = [result for result in results if not result.error]
    if learned:
        say(whose(learned[0].model) + (f"; the referee is {judged}" if judged else ""))
    _say_notes(results, names)


def whose(model: str) -> str:
    """Returns the words that go with cosines."""
    return f"cosines of {model or 'this model'}; those of another model cannot be compared"


def plain_result(result: PromptResult, history: bool) -> dict[str, Any]:
    """Returns a result as plain values, with the score at every step only where it is asked for."""
    values = result.to_dict()
    if not history:
        del values["history"]
    return values


def _shaded(candidate: Any, encoding: str) -> Text:
    """Returns a prompt with every other token on a shade."""
    text = Text()
    for piece, number in pieces(candidate.prompt, candidate.tokens):
        text.append(one_line(piece, encoding), SHADE if number is not None and number % 2 == 0 else None)
    return text


def _say_notes(results: Sequence[PromptResult], names: Sequence[str] = ()) -> None:
    """Prints on stderr what is to be said of each result, with the image's name if there are several."""
    for k, result in enumerate(results):
        if result.note:
            say(f"pez-fast: note: {f'{names[k]}: ' if names else ''}{result.note}")


def print_json(value: Any, indent: int | None = None) -> None:
    """Prints JSON on stdout that is valid in every locale; numbers that are not finite become null."""
    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    put(json.dumps(finite_or_none(value), ensure_ascii=not unicode, allow_nan=False, indent=indent))


def table_of(name: str, prompt: str, *scores: str) -> Table:
    """Returns an empty table with columns of these titles, the scores at the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(name, overflow="fold", max_width=32)
    table.add_column(prompt, overflow="fold", ratio=1)
    for score in scores:
        table.add_column(score, justify="right", no_wrap=True)
    return table
