"""Inversion on many machines with Ray Data: a class for `map_batches`, and `pez-fast batch --engine ray`."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pez_fast._shared.files import FullDiskError
from pez_fast._shared.installation import install_hint
from pez_fast.config import SearchConfig, config_from
from pez_fast.dataset.arrow import arrow
from pez_fast.dataset.job import Job, Summary
from pez_fast.dataset.learning import learn_all, prefetch, read
from pez_fast.dataset.locks import exclusive_lock
from pez_fast.dataset.manifest import ensure_manifest, fingerprint_of, model_part
from pez_fast.dataset.progress import last_prompt, watch_batch
from pez_fast.dataset.rows import bytes_or_path
from pez_fast.dataset.shards import Row, columns, write_shard
from pez_fast.dataset.sources import digest
from pez_fast.images import image_or_error
from pez_fast.models import load_clip
from pez_fast.report.console import say


def ray_inverter(
    model: str, pretrained: str | None = None, device: str | None = None, column: str = "image", **options: Any
) -> type:
    """Returns a class for Ray Data's `map_batches`.

        dataset.map_batches(cls, compute=ray.data.ActorPoolStrategy(size=n), batch_size=64, num_gpus=1)

    Each actor loads the model once and takes batches of any `batch_format`. It adds the columns prompt, ids, ids_score,
    text_score, seed, steps and error, with the values and Arrow types of a data set's shards.

    Args:
        model, pretrained, device: as for `load_clip`, which the actor calls.
        column: the column of the images: bytes, paths, uint8 arrays, or structs of bytes and path.
        options: as for `pez_fast.invert`.

    Raises:
        ValueError, TypeError: an option cannot be used.
    """
    chosen = config_from(options)

    class RayInverter:
        """Batches of images -> the same with learned prompts."""

        def __init__(self) -> None:
            self.clip = load_clip(model, pretrained, device)

        def __call__(self, batch: Any) -> Any:
            names = [str(name) for name in getattr(batch, "column_names", batch)]
            if column not in names:
                raise ValueError(f"column {column!r} is not in the batch; its columns are {', '.join(names)}")
            pixels = [image_or_error(_unwrapped(image), self.clip.preprocess) for image in batch[column]]
            return _with_columns(batch, learn_all(pixels, self.clip, chosen))

    return RayInverter


def _unwrapped(image: Any) -> Any:
    """Returns the image in a column's value, without the wrappers of pyarrow, Ray and Hugging Face."""
    if hasattr(image, "as_py"):
        image = image.as_py()
    elif hasattr(image, "to_numpy"):
        image = image.to_numpy()
    return bytes_or_path(image)


def _with_columns(batch: Any, rows: Sequence[Row]) -> Any:
    """Returns a batch with the columns of the rows, in the format of the batch.

    The columns have fixed types, since Ray cannot join blocks whose inferred types differ.
    """
    fields = [field for field in columns() if field.name not in ("id", "stamp")]
    learned = {field.name: arrow().array([row.get(field.name) for row in rows], field.type) for field in fields}
    if hasattr(batch, "column_names"):  # pyarrow.Table
        kept = {name: batch[name] for name in batch.column_names}
        return arrow().table(kept | learned)
    if hasattr(batch, "assign"):  # pandas.DataFrame
        from pandas import ArrowDtype, array

        return batch.assign(**{name: array(values, ArrowDtype(values.type)) for name, values in learned.items()})
    return {**batch, **learned}


class _ShardActor:
    """Learns batches of items and writes each as a shard with a digest of its ids in its name.

    If Ray sends a batch again, the actor reads its shard in place of learning it again.
    """

    def __init__(
        self,
        model: str,
        weights: str | None,
        device: str,
        options: SearchConfig,
        expected: dict[str, Any],
        out: str,
        stem: str,
        workers: int,
    ) -> None:
        self.clip = load_clip(model, weights, device)
        model_configuration = model_part(self.clip, options, self.clip.device.type)
        differing = [
            f"{name} {expected[name]} there, {value} here"
            for name, value in model_configuration.items()
            if expected[name] != value
        ]
        if differing:
            raise ValueError(f"an actor has another model than the run: {'; '.join(differing)}")
        self.options, self.expected, self.out, self.stem, self.workers = options, expected, Path(out), stem, workers

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Learns and writes the items of a batch; returns their number and the last prompt."""
        items = [pickle.loads(item) for item in batch["item"]]
        path = self.out / f"{self.stem}-{digest(item.id for item in items)}.parquet"
        try:
            rows = arrow().parquet.read_table(path, partitioning=None).to_pylist()
        except FileNotFoundError:
            prepared = [found for _, found in prefetch(items, partial(read, model=self.clip), self.workers, len(items))]
            learned = learn_all([pixels for pixels, _ in prepared], self.clip, self.options)
            rows = [
                {**row, "id": item.id, "stamp": stamp}
                for item, row, (_, stamp) in zip(items, learned, prepared, strict=True)
            ]
            ensure_manifest(self.out, self.expected, self.clip.name)
            write_shard(path, rows, fingerprint_of(self.expected))
        return {"images": [len(rows)], "last": [last_prompt(rows)]}


def run_on_ray(job: Job, model: str, weights: str | None, device: str | None, actors: int) -> Summary:
    """Same as `Job.run`, in actors of Ray, in the cluster that RAY_ADDRESS names or on this machine.

    Args:
        job: the data set.
        model, weights: as for `load_clip`; every actor loads the model and must find the same weights.
        device: "cuda" (one GPU for each actor) or "cpu". Default: "cuda" if the cluster has GPUs.
        actors: the number of actors.

    Returns:
        The `Summary` of the run.

    Raises:
        ValueError: `actors` is not positive, an actor has another model, or as for `Job.run`.
        ImportError: ray is not installed.
    """
    if actors < 1:
        raise ValueError(f"actors must be a positive integer; got {actors}")
    ray = _import_ray()
    begun, stem = time.monotonic(), f"part-ray-{job.number:05d}-of-{job.count:05d}"
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    interrupted = False
    try:
        gpus = ray.cluster_resources().get("GPU", 0) if device is None else device != "cpu"
        device = device or ("cuda" if gpus else "cpu")
        say(f"loading the model {model}" + (f" with {weights}" if weights else ""))
        clip = load_clip(model, weights, "cpu")
        with exclusive_lock(job.out, stem):
            expected = job.configuration | model_part(clip, job.options, device.partition(":")[0])
            remaining = job.prepare(expected, clip.name, stem)
            try:
                arguments = (model, weights, device, job.options, expected, str(job.out.resolve()), stem, job.workers)
                with watch_batch(len(job.items), len(job.items) - len(remaining)) as progress:
                    for done in (
                        _learned(ray, remaining, job.images_at_once, arguments, actors, bool(gpus)) if remaining else ()
                    ):
                        progress.add([{"prompt": done["last"]}] * done["images"])
            except KeyboardInterrupt:
                interrupted = True
            return job.summary(fingerprint_of(expected), stem, begun, interrupted)
    finally:
        if started_here:
            ray.shutdown()


def _learned(ray: Any, items: Sequence[Any], images_at_once: int, arguments: tuple, actors: int, gpus: bool) -> Any:
    """Yields the answer of `_ShardActor` to each batch; a batch is a block, so one sent again holds the same items."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"item": pickle.dumps(item)} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // images_at_once)).map_batches(
        _ShardActor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=int(gpus),
    )
    try:
        yield from dataset.iter_rows()
    except Exception as error:  # Ray wraps an actor's error in errors with long messages
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) or cause.__cause__
            if type(cause) in (ValueError, TypeError, ImportError, FullDiskError):
                raise type(cause)(str(cause)) from None
            cause = inner if isinstance(inner, BaseException) else None
        raise


def _import_ray() -> Any:
    """Returns the module ray, with `ray.data` imported, or raises an ImportError that says what to install."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError(f"ray cannot be imported; {install_hint('data,ray')}") from None
    return ray
