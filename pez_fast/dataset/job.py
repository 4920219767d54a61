"""A run over a data set: what is finished already, and the loop over the rest."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pez_fast.config import config_from
from pez_fast.dataset.arrow import arrow
from pez_fast.dataset.held import Entry, Held, scan, settle
from pez_fast.dataset.learning import RowLearner, prefetch, read
from pez_fast.dataset.locks import exclusive_lock
from pez_fast.dataset.manifest import (
    check_manifest,
    configuration,
    ensure_manifest,
    fingerprint_of,
    model_part,
    of_one_data_set,
    stored_configuration,
)
from pez_fast.dataset.progress import LiveBatchProgress, watch_batch
from pez_fast.dataset.shards import ShardWriter
from pez_fast.dataset.sources import Item, open_source
from pez_fast.dataset.stamps import has_changed, is_as_it_was
from pez_fast.report.console import first_names, say
from pez_fast.tasks.checks import check_model

_IMAGES_AT_ONCE = 64  # images learned at once if `batch_size` is not given
_MOST_WORKERS = 1024


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        images: how many images this shard of the data set has.
        finished: how many of these are on the disk, errors included.
        errors: how many of these could not be read.
        seconds: the time of this run.
        interrupted: whether Ctrl-C ended the run; the same call continues it.
        failures: the ids of the images that could not be read, with the reasons.
    """

    images: int
    finished: int
    errors: int
    seconds: float
    interrupted: bool
    failures: dict[str, str]


class Job:
    """A data set to learn into a folder.

    Args:
        source, column: as for `open_source`.
        out: the folder of the results. The job makes it, or continues it if its configuration is the same.
        options: those of `pez_fast.SearchConfig`.
        shard: "i/n": only the i-th of n parts of the images (0 to n - 1), for n runs into the same folder. The id of an
            image alone decides its part, so that no image changes its part when the data set grows.
        workers: the number of threads that read images ahead.
        retry_errors: whether to try images again that could not be read and have not changed since.
        moved: whether the source may be at another place than that of the folder's earlier runs.

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
        retry_errors: bool = False,
        moved: bool = False,
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= _MOST_WORKERS:
            raise ValueError(f"workers must be an integer from 1 to {_MOST_WORKERS}; got {workers!r}")
        self.workers, self.options = workers, config_from(options)
        self.number, self.count = _shard(shard)
        self.retry_errors, self.moved = retry_errors, moved
        arrow()
        opened = open_source(source, column)
        self._all_items = opened.items
        self.items = [item for item in opened.items if _part(item.id, self.count) == self.number]
        self.out = Path(out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the folder {out} cannot be made: {error}") from None
        if not os.access(self.out, os.W_OK):
            raise ValueError(f"the folder {out} cannot be written")
        here = configuration(opened, self.options)
        self.configuration = of_one_data_set(self.out, here, moved)
        check_manifest(self.out, self.configuration, moved)
        stored = stored_configuration(self.out)
        scan(self.out, fingerprint_of(stored) if stored else None).refuse_strangers(self.out)

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
            TypeError: the model lacks what a data set needs.
        """
        check_model(model, "encode_pixels", "preprocess", "fingerprint")
        begun, stem = time.monotonic(), f"part-{self.number:05d}-of-{self.count:05d}"
        with exclusive_lock(self.out, stem):
            complete = self.configuration | model_part(model, self.options, model.device.type)
            remaining = self.prepare(complete, model.name, stem)
            try:
                self._learn(model, remaining, len(self.items) - len(remaining), stem, complete)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            return self.summary(fingerprint_of(complete), stem, begun, interrupted)

    def prepare(self, complete: dict[str, Any], model_name: str, stem: str) -> list[Item]:
        """Puts the folder right for this configuration and returns the items of this shard that are to be learned.

        These are the images that the folder does not hold and those that have changed; rows of the latter are taken
        out. The caller holds the lock of `stem`.

        Raises:
            ValueError: the folder holds files of another configuration, or `moved` is wrong.
        """
        check_manifest(self.out, complete, self.moved)
        fingerprint = fingerprint_of(complete)
        held = scan(self.out, fingerprint)
        held.refuse_strangers(self.out)
        again = self._to_learn_again(held)
        held = settle(self.out, fingerprint, stem, again)
        if held.rows or (self.moved and stored_configuration(self.out)):  # a lost manifest comes back
            ensure_manifest(self.out, complete, model_name, self.moved)
        self._report_gone(held)
        return [item for item in self.items if item.id not in held.rows]

    def _to_learn_again(self, held: Held) -> dict[str, Entry]:
        """Returns the rows of this shard whose images have changed, and with `retry_errors` those with errors."""
        known = [item for item in self.items if item.id in held.rows]
        stamps = {item.id: held.rows[item.id].stamp for item in known}
        doubtful = [item for item in known if not is_as_it_was(item, stamps[item.id])]
        if doubtful:
            say(f"comparing {len(doubtful)} finished images with what was learned, by their bytes")
        compared = prefetch(doubtful, lambda item: has_changed(item, stamps[item.id]), self.workers, 64)
        changed = [item for item, differs in compared if differs]
        if self.moved:
            self._check_moved(held, known, changed)
        if changed:
            say(f"{len(changed)} images have changed and are learned again")
        ids = {item.id for item in changed}
        if self.retry_errors:
            ids.update(item.id for item in known if held.rows[item.id].error is not None)
        return {key: held.rows[key] for key in ids}

    def _check_moved(self, held: Held, known: Sequence[Item], changed: Sequence[Item]) -> None:
        """Raises ValueError if the source has none of the images that the folder holds rows of."""
        met = known or [item for item in self._all_items if item.id in held.rows]
        if held.rows and len(changed) == len(met):
            raise ValueError(
                f"--moved: none of the {len(held.rows)} images in {self.out} is the same in the source; "
                "take another --out"
            )

    def _report_gone(self, held: Held) -> None:
        """Says which rows are of images that the source no longer holds."""
        gone = sorted(held.rows.keys() - {item.id for item in self._all_items})
        if gone:
            say(
                f"pez-fast: warning: the source no longer holds {len(gone)} of the images in {self.out}; "
                f"their rows stay and are not counted: {first_names(gone)}"
            )

    def summary(self, fingerprint: str, stem: str, begun: float, interrupted: bool) -> Summary:
        """Puts the folder right and returns the summary of a run that began at `begun` (seconds)."""
        held = settle(self.out, fingerprint, stem, {})
        rows = {item.id: held.rows[item.id] for item in self.items if item.id in held.rows}
        failures = {key: entry.error for key, entry in rows.items() if entry.error is not None}
        return Summary(len(self.items), len(rows), len(failures), time.monotonic() - begun, interrupted, failures)

    def _learn(self, model: Any, remaining: list[Item], finished: int, stem: str, complete: dict[str, Any]) -> None:
        """Learns the items and writes their rows; the first rows also write the manifest."""
        writer = ShardWriter(self.out, stem, fingerprint_of(complete))
        prepared = prefetch(remaining, partial(read, model=model), self.workers, self.images_at_once)
        stamps: dict[str, str] = {}

        def pixels() -> Iterator[tuple[str, Tensor | str]]:
            for item, (found, stamp) in prepared:
                stamps[item.id] = stamp
                yield item.id, found

        with watch_batch(len(self.items), finished) as progress, closing(prepared):
            options = replace(self.options, every=progress.every)
            within = progress.within if isinstance(progress, LiveBatchProgress) else None
            for rows in RowLearner(model, options, self.images_at_once, within).rows(pixels()):
                if not writer.begun:  # only now, so that a refused option leaves no trace
                    ensure_manifest(self.out, complete, model.name)
                writer.add([{**row, "stamp": stamps.pop(row["id"])} for row in rows])
                progress.add(rows)


def invert_dataset(
    source: str | os.PathLike,
    out: str | os.PathLike,
    model: Any,
    shard: str = "0/1",
    workers: int = 4,
    column: str | None = None,
    retry_errors: bool = False,
    moved: bool = False,
    **options: Any,
) -> Summary:
    """Learns a prompt for each image of a data set, as `pez_fast.invert` does, into Parquet shards in the folder `out`.

    A folder that holds part of the results is continued.

    Args:
        model: from `load_clip`.
        source, out, shard, workers, column, retry_errors, moved: as for `Job`.
        **options: those of `pez_fast.SearchConfig`.

    Returns:
        The `Summary` of the run.

    Raises:
        ValueError, TypeError, ImportError: as for `Job` and `Job.run`.
    """
    return Job(source, out, options, shard, workers, column, retry_errors, moved).run(model)


def _shard(text: str) -> tuple[int, int]:
    """Returns i and n of a text i/n."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text) if isinstance(text, str) else None
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if number >= count:
        raise ValueError(f"shard must be i/n with i from 0 to n - 1, such as 0/4; got {text!r}")
    return number, count


def _part(key: str, count: int) -> int:
    """Returns the part of n, from 0 on, that an id belongs to."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count
