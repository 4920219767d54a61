"""A run over a data set: what is to be done, what is done already, and the loop over the rest."""

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
from pez_fast.dataset.manifest import check_manifest, configuration, ensure_manifest, model_part
from pez_fast.dataset.progress import LiveBatchProgress, watch_batch
from pez_fast.dataset.shards import Completed, ShardWriter, completed_ids, exclusive_lock
from pez_fast.dataset.sources import Item, open_source
from pez_fast.report.console import say

_TOGETHER = 64  # images learned at once where `batch_size` is not given


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        images: of this shard of the data set.
        finished: of these, on the disk, errors included.
        errors: of these, those that could not be read.
        seconds: of this run.
        interrupted: by Ctrl-C; the same call continues.
    """

    images: int
    finished: int
    errors: int
    seconds: float
    interrupted: bool


class Job:
    """A data set to be learned into a folder; all that can be refused without the model is refused here.

    Args:
        source, column: as `open_source`.
        out: folder of the results; made if there is none, continued if there is one of the same configuration.
        options: those of `pez_fast.SearchConfig`.
        shard: "i/n": only every n-th image, from the i-th on (0 to n - 1); for n runs that share the folder alone.
        workers: threads that read images ahead.

    Attributes:
        items: those of this shard, finished or not.
        together: images learned at once.
        configuration: what the manifest will hold, less the model's part.
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
    def together(self) -> int:
        if self.options.batch_size is None:
            return _TOGETHER
        return max(1, self.options.batch_size // self.options.restarts)

    def run(self, model: Any) -> Summary:
        """Learn what is not finished yet, with this model in this process.

        Raises:
            ValueError: the folder was made with other weights, another run writes the same shard, or an option does not suit the model.
        """
        begun, stem = time.monotonic(), f"part-{self.number:05d}-of-{self.count:05d}"
        with exclusive_lock(self.out, stem):
            complete = self.configuration | model_part(model, self.options, model.device.type)
            check_manifest(self.out, complete)
            rest = self.rest()
            try:
                self._learn(model, rest, len(self.items) - len(rest), stem, complete)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            return self.summary(completed_ids(self.out), begun, interrupted)

    def rest(self) -> list[Item]:
        """The items of this shard that the folder does not hold."""
        found = completed_ids(self.out)
        for name in found.removed:
            say(f"pez-fast: warning: {self.out / name} could not be read and was removed; its images are learned again")
        return [item for item in self.items if item.id not in found.ids]

    def summary(self, found: Completed, begun: float, interrupted: bool) -> Summary:
        own = {item.id for item in self.items}
        return Summary(len(own), len(own & found.ids), len(own & found.errors), time.monotonic() - begun, interrupted)

    def _learn(self, model: Any, rest: list[Item], finished: int, stem: str, complete: dict[str, Any]) -> None:
        writer = ShardWriter(self.out, stem)
        prepared = prefetch(rest, partial(read, model=model), self.workers, self.together)
        with watch_batch(len(self.items), finished) as progress, closing(prepared):
            items = ((item.id, pixels) for item, pixels in prepared)
            options = replace(self.options, every=progress.every)
            within = progress.within if isinstance(progress, LiveBatchProgress) else None
            for rows in RowLearner(model, options, self.together, within).rows(items):
                if not writer.begun:  # not before: an option that learning refuses leaves no trace
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
    """Same as `pez_fast.invert` on each image of a data set, into Parquet shards in the folder `out`; continues what is there.

    Args and errors: as `Job`; `options` are those of `pez_fast.invert`.
    """
    return Job(source, out, options, shard, workers, column).run(model)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text) if isinstance(text, str) else None
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if number >= count:
        raise ValueError(f"shard must be i/n with i from 0 to n - 1, such as 0/4; got {text!r}")
    return number, count
