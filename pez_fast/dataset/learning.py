"""From items to rows: pictures read ahead in threads, encoded and learned in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from pez_fast.config import SearchConfig
from pez_fast.dataset.shards import Row
from pez_fast.encoders import ClipEncoder
from pez_fast.images import image_or_error
from pez_fast.learner import ROUND, Learner, State
from pez_fast.result import PromptResult

LEARNED = ("prompt", "ids", "ids_score", "text_score", "steps")
T = TypeVar("T")
U = TypeVar("U")


def read(item: Any, clip: ClipEncoder) -> Tensor | str:
    """An item of a data set -> (3, H, W) as the model wants it, or one sentence where it cannot be read."""
    try:
        source = item.read()
    except ValueError as error:
        return str(error)
    return image_or_error(source, clip.preprocess)


def ahead(values: Sequence[T], work: Callable[[T], U], threads: int, most: int) -> Generator[tuple[T, U], None, None]:
    """Each value with work(value), in order; up to `most` are worked on, or done, before they are asked for.

    In threads, not processes: decoding and resizing let the interpreter go, the search needs one core, and a process
    would have to load torch again, could outlive a killed run, and must not be forked from one that uses a GPU.
    """
    pool, waiting = ThreadPoolExecutor(threads, "pez-fast-read"), deque[tuple[T, Future[U]]]()
    try:
        for value in values:
            waiting.append((value, pool.submit(work, value)))
            if len(waiting) > most:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def learn_rows(
    items: Iterable[tuple[str, Tensor | str]],
    clip: ClipEncoder,
    options: SearchConfig,
    together: int,
    callback: Callable[[float], object] | None = None,
) -> Iterator[list[Row]]:
    """A row for each id, as if it were alone, in the order in which they are finished; a sentence in place of pixels becomes
    the row's error.

    Args:
        items: ids and pixels, asked for when there is room for them.
        together: pictures learned at once.
        callback: told from time to time how many pictures' worth of work is done of those in work.

    Raises:
        KeyboardInterrupt: also where the search would return its best so far.
    """
    unreadable: list[tuple[int, Row]] = []

    def row(name: str, **more: Any) -> Row:
        return {"id": name, "seed": options.seed, "steps": 0, "error": None, **more}

    def goals() -> Iterator[tuple[tuple[int, str], Tensor]]:
        waiting = enumerate(items)
        while group := list(islice(waiting, together)):
            unreadable.extend((k, row(name, error=p)) for k, (name, p) in group if isinstance(p, str))
            readable = [((k, name), p) for k, (name, p) in group if not isinstance(p, str)]
            if readable:
                yield from zip(
                    [name for name, _ in readable], clip.encode_pixels([p for _, p in readable]), strict=True
                )

    def rows(cohort: list[tuple[tuple[int, str], PromptResult]]) -> list[Row]:
        learned = [
            (k, row(name, **{n: getattr(r, n) for n in (("error",) if r.error else LEARNED)}))
            for (k, name), r in cohort
        ]
        ordered = [found for _, found in sorted(unreadable + learned, key=lambda one: one[0])]
        unreadable.clear()
        return ordered

    def report(state: State) -> None:
        whole = options.steps + ROUND * options.polish
        done = sum(
            len(c.part.names) * (state.updates(c) + ROUND * (state.polished if k == 0 else 0))
            for k, c in enumerate(state.cohorts)
        )
        assert callback is not None
        callback(done / whole)

    learner = Learner(clip, options)
    learner.at_once = min(learner.at_once, together * options.restarts)
    for cohort in learner.stream(goals(), report if callback else None):
        if learner.ended == "interrupt":
            raise KeyboardInterrupt
        yield rows(cohort)
    if unreadable:
        yield rows([])


def learn_all(pixels: Sequence[Tensor | str], clip: ClipEncoder, options: SearchConfig) -> list[Row]:
    """`learn_rows` for pixels that are all there already: the rows in their order, with numbers for ids."""
    found = learn_rows([(str(k), p) for k, p in enumerate(pixels)], clip, options, max(1, len(pixels)))
    return sorted((row for rows in found for row in rows), key=lambda row: int(row["id"]))
