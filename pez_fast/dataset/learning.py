"""From items to rows: threads read images ahead, and batches encode and learn them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from pez_fast.config import SearchConfig
from pez_fast.dataset.shards import Row
from pez_fast.dataset.stamps import stamp_of
from pez_fast.engine import SearchState, Stage
from pez_fast.images import image_or_error
from pez_fast.objectives import Similarity
from pez_fast.prompt_search import PromptSearch
from pez_fast.result import PromptResult

LEARNED = ("prompt", "ids", "ids_score", "text_score", "steps")
T = TypeVar("T")
U = TypeVar("U")


def read(item: Any, model: Any) -> tuple[Tensor | str, str]:
    """Returns an item's pixels (3, H, W) from the model's `preprocess`, and its stamp.

    One sentence stands in the place of the pixels if the item cannot be read. The stamp is made first, so that an image
    that changes meanwhile does not fit its stamp, and the next run learns it again.
    """
    try:
        source = item.read()
    except ValueError as error:
        return str(error), stamp_of(item, None)
    stamp = stamp_of(item, source)
    return image_or_error(source, model.preprocess), stamp


def prefetch(
    values: Sequence[T], work: Callable[[T], U], threads: int, buffer_size: int
) -> Generator[tuple[T, U], None, None]:
    """Yields each value with work(value), in order, while threads work on the values that follow.

    Threads serve better than processes: decoding and resizing release the interpreter, the search needs one core, and a
    process would have to load torch again, could outlive a killed run, and must not be forked from one that uses a GPU.

    Args:
        work: a function of a value.
        threads: the number of threads.
        buffer_size: how many values are worked on, or done, ahead of the caller.
    """
    pool, waiting = ThreadPoolExecutor(threads, "pez-fast-read"), deque[tuple[T, Future[U]]]()
    try:
        for value in values:
            waiting.append((value, pool.submit(work, value)))
            if len(waiting) > buffer_size:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class RowLearner:
    """Learns a row for each image; no row depends on the others.

    Args:
        model: as for `PromptSearch`; it also needs `encode_pixels`.
        options: the options of the search.
        images_at_once: the number of images learned at once.
        callback: a function that is called now and then with the work done on the images in the batches, in images.
    """

    def __init__(
        self, model: Any, options: SearchConfig, images_at_once: int, callback: Callable[[float], object] | None = None
    ) -> None:
        self.model, self.options, self.images_at_once, self.callback = model, options, images_at_once, callback
        self._unreadable: list[tuple[int, Row]] = []

    def rows(self, items: Iterable[tuple[str, Tensor | str]]) -> Iterator[list[Row]]:
        """Yields rows, in groups, when they are finished.

        Args:
            items: pairs of an id and its pixels (3, H, W), or a sentence in their place, which becomes the row's error.
                The search takes the next items when it has room.

        Raises:
            KeyboardInterrupt: after Ctrl-C, even if the search would return its best prompts so far.
        """
        self._search = PromptSearch(self.model, self.options, self.images_at_once)
        for found in self._search.stream(self._targets(items), self._on_progress if self.callback else None):
            if self._search.stop_reason == "interrupt":
                raise KeyboardInterrupt
            yield self._ordered(found)
        if self._unreadable:
            yield self._ordered([])

    def _targets(self, items: Iterable[tuple[str, Tensor | str]]) -> Iterator[tuple[list[tuple[int, str]], Similarity]]:
        """Yields groups of targets; it keeps the rows of unreadable images for `_ordered`."""
        waiting = enumerate(items)
        while group := list(islice(waiting, self.images_at_once)):
            self._unreadable += [(k, self._row(name, error=p)) for k, (name, p) in group if isinstance(p, str)]
            readable = [((k, name), p) for k, (name, p) in group if not isinstance(p, str)]
            if readable:
                features = self.model.encode_pixels([p for _, p in readable])
                yield [key for key, _ in readable], Similarity(features)

    def _row(self, name: str, **more: Any) -> Row:
        """Returns a row with these values."""
        return {"id": name, "seed": self.options.seed, "steps": 0, "error": None, **more}

    def _ordered(self, found: Sequence[tuple[tuple[int, str], PromptResult]]) -> list[Row]:
        """Returns the rows of the results and of the unreadable images before them, in the order of the items."""
        learned = [
            (k, self._row(name, **{n: getattr(r, n) for n in (("error",) if r.error else LEARNED)}))
            for (k, name), r in found
        ]
        rows = [row for _, row in sorted(self._unreadable + learned, key=lambda one: one[0])]
        self._unreadable.clear()
        return rows

    def _on_progress(self, searches: Sequence[SearchState]) -> None:
        """Calls `callback` with the work done, in images."""

        def cost(stage: Stage) -> float:
            return getattr(stage.method, "relative_cost", 1.0)

        whole = sum(cost(stage) * stage.num_steps for stage in self._search.stages)
        done = sum(
            len(search.request.keys) * sum(cost(part.stage) * part.updates for part in search.chain)
            for search in searches
        )
        assert self.callback is not None
        self.callback(done / whole)


def learn_all(pixels: Sequence[Tensor | str], model: Any, options: SearchConfig) -> list[Row]:
    """Returns the rows of pixels in their order, with numbers as ids; a sentence among the pixels becomes an error."""
    learner = RowLearner(model, options, max(1, len(pixels)))
    found = learner.rows((str(k), p) for k, p in enumerate(pixels))
    return sorted((row for rows in found for row in rows), key=lambda row: int(row["id"]))
