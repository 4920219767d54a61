"""From items to rows: pictures read ahead in threads, encoded and learned in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from pez_fast.dataset.shards import Row
from pez_fast.encoders import ClipEncoder
from pez_fast.images import load_image
from pez_fast.tasks import Options, learn

T = TypeVar("T")
U = TypeVar("U")


def pixels_of(image: Any, clip: ClipEncoder) -> Tensor | str:
    """What `load_image` takes -> (3, H, W) as the model wants it, or one sentence where it cannot be read."""
    try:
        return clip.preprocess(load_image(image))
    except (ValueError, TypeError) as error:
        return str(error)


def read(item: Any, clip: ClipEncoder) -> Tensor | str:
    """The same for an item of a data set."""
    try:
        image = item.read()
    except ValueError as error:
        return str(error)
    return pixels_of(image, clip)


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


def learn_rows(ids: Sequence[str], pixels: Sequence[Tensor | str], clip: ClipEncoder, options: Options,
               callback: Callable[[Any], object] | None = None) -> list[Row]:  # fmt: skip
    """A row for each id, as if it were alone; a sentence in place of pixels becomes the row's error.

    Raises:
        KeyboardInterrupt: also where the search would return its best so far.
    """
    readable = [k for k, p in enumerate(pixels) if not isinstance(p, str)]
    rows: list[Row] = [{"id": name, "seed": options.seed, "steps": 0, "error": p if isinstance(p, str) else None}
                       for name, p in zip(ids, pixels, strict=True)]  # fmt: skip
    if readable:
        features = clip.encode_pixels([pixels[k] for k in readable])  # type: ignore[misc]
        results = learn(features, clip, replace(options, callback=callback))
        if any(result.stopped == "interrupt" for result in results):
            raise KeyboardInterrupt
        for k, result in zip(readable, results, strict=True):
            rows[k] |= {name: getattr(result, name) for name in ("prompt", "ids", "ids_score", "text_score", "steps")}
    return rows
