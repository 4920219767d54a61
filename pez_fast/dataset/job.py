"""A run over a data set: what is finished already, and the loop over the rest."""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pez_fast.config import config_from
from pez_fast.dataset.arrow import arrow
from pez_fast.dataset.learning import RowLearner, prefetch, read
from pez_fast.dataset.manifest import check_manifest, configuration, ensure_manifest, fingerprint_of, model_part
from pez_fast.dataset.progress import LiveBatchProgress, watch_batch
from pez_fast.dataset.shards import Completed, ShardWriter, completed_ids, exclusive_lock
from pez_fast.dataset.sources import Item, open_source
from pez_fast.report.console import say

_IMAGES_AT_ONCE = 64  # images learned at once if `batch_size` is not given


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        images: how many images this shard of the data set has.
        finished: how many of these are on the disk, errors included.
        errors: how many of these could not be read.
        seconds: the time of this run.
        interrupted: whether Ctrl-C ended the run; the same call continues it.
    """

    images: int
    finished: int
    errors: int
    seconds: float
    interrupted: bool


class Job:
    """A data set to learn into a folder.

    Args:
        source, column: as for `open_source`.
        out: the folder of the results. The job makes it, or continues it if its configuration is the same.
        options: those of `pez_fast.SearchConfig`.
        shard: "i/n": only every n-th image, from the i-th on (0 to n - 1), for n runs into the same folder.
        workers: the number of threads that read images ahead.

    Attributes:
        items: the images of this shard, finished or not.
        images_at_once: the number of images learned at once.
        configuration: the manifest's configuration without the model's part.

    Raises:
        ValueError, TypeError: an argument or an option cannot be used, or the folder holds results of another
            configuration. The job checks here all that it can check without the model.
        ImportError: pyarrow is not installed.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        out: str | os.PathLike,
        options: dict[str, Any],
        shard: str = "0/1",
        workers: int = 4,
        column: str | None = None,
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ValueError(f"workers must be a positive integer; got {workers!r}")
        self.workers, self.options = workers, config_from(options)
        self.number, self.count = _shard(shard)
        arrow()
        opened = open_source(source, column)
        self.items = opened.items[self.number :: self.count]
        self.configuration = configuration(opened, self.options)
        self.out = Path(out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the folder {out} cannot be made: {error}") from None
        check_manifest(self.out, self.configuration)

    @property
    def images_at_once(self) -> int:
        """The number of images learned at once."""
        if self.options.batch_size is None:
            return _IMAGES_AT_ONCE
        return max(1, self.options.batch_size // self.options.restarts)

    def run(self, model: Any) -> Summary:
        """Learns the images that are not finished, with this model in this process.

        Returns:
            The `Summary` of the run.

        Raises:
            ValueError: the folder holds results of another model, another run writes the same shard, or an option does
                not suit the model.
        """
        begun, stem = time.monotonic(), f"part-{self.number:05d}-of-{self.count:05d}"
        with exclusive_lock(self.out, stem):
            complete = self.configuration | model_part(model, self.options, model.device.type)
            check_manifest(self.out, complete)
            fingerprint = fingerprint_of(complete)
            remaining = self.remaining(fingerprint)
            if len(remaining) < len(self.items):  # there are shards: a lost manifest comes back
                ensure_manifest(self.out, complete, model.name)
            try:
                self._learn(model, remaining, len(self.items) - len(remaining), stem, complete)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            return self.summary(completed_ids(self.out, fingerprint), begun, interrupted)

    def remaining(self, fingerprint: str) -> list[Item]:
        """Returns the items of this shard that the folder does not hold."""
        found = completed_ids(self.out, fingerprint)
        for name in found.removed:
            aside = f"{self.out / name} could not be read; it is now {name}.unreadable"
            say(f"pez-fast: warning: {aside}, and its images are learned again")
        return [item for item in self.items if item.id not in found.ids]

    def summary(self, found: Completed, begun: float, interrupted: bool) -> Summary:
        """Returns the summary of a run that began at `begun` (seconds) and left `found` in the folder."""
        ids = {item.id for item in self.items}
        return Summary(len(ids), len(ids & found.ids), len(ids & found.errors), time.monotonic() - begun, interrupted)

    def _learn(self, model: Any, remaining: list[Item], finished: int, stem: str, complete: dict[str, Any]) -> None:
        """Learns the items and writes their rows; the first rows also write the manifest."""
        writer = ShardWriter(self.out, stem, fingerprint_of(complete))
        prepared = prefetch(remaining, partial(read, model=model), self.workers, self.images_at_once)
        with watch_batch(len(self.items), finished) as progress, closing(prepared):
            items = ((item.id, pixels) for item, pixels in prepared)
            options = replace(self.options, every=progress.every)
            within = progress.within if isinstance(progress, LiveBatchProgress) else None
            for rows in RowLearner(model, options, self.images_at_once, within).rows(items):
                if not writer.begun:  # only now, so that a refused option leaves no trace
                    ensure_manifest(self.out, complete, model.name)
                writer.add(rows)
                progress.add(rows)


def invert_dataset(
    source: str | os.PathLike,
    out: str | os.PathLike,
    model: Any,
    shard: str = "0/1",
    workers: int = 4,
    column: str | None = None,
    **options: Any,
) -> Summary:
    """Learns a prompt for each image of a data set, as `pez_fast.invert` does, into Parquet shards in the folder `out`.

    A folder that holds part of the results is continued.

    Args:
        model: from `load_clip`.
        source, out, shard, workers, column: as for `Job`.
        **options: those of `pez_fast.SearchConfig`.

    Returns:
        The `Summary` of the run.

    Raises:
        ValueError, TypeError, ImportError: as for `Job` and `Job.run`.
    """
    return Job(source, out, options, shard, workers, column).run(model)


def _shard(text: str) -> tuple[int, int]:
    """Returns i and n of a text i/n."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text) if isinstance(text, str) else None
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if number >= count:
        raise ValueError(f"shard must be i/n with i from 0 to n - 1, such as 0/4; got {text!r}")
    return number, count
