"""A study of prompt lengths: the cosine by the model that learns and by a referee, over pictures and seeds.

Each finished prompt is a file of its own, so that a study that was ended is continued by the same call.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pez_fast.config import SearchConfig, SearchOptions, config_from, takes_config, whole_number
from pez_fast.dataset.locks import exclusive_lock
from pez_fast.dataset.manifest import check_manifest, ensure_manifest, model_part, search_part
from pez_fast.dataset.runs import learn_runs, read_run, write_run
from pez_fast.images import load_image
from pez_fast.objectives import Similarity
from pez_fast.prompt_search import PromptSearch
from pez_fast.report.output import check_folder
from pez_fast.result import LengthRun, LengthStudy, PromptResult, finite_or_none
from pez_fast.tasks.checks import check_model
from pez_fast.tasks.referee import add_referee, check_referee

if TYPE_CHECKING:
    from typing_extensions import Unpack

LENGTHS = (1, 2, 4, 8, 16)
_STEM = "lengths"  # of the lock


@takes_config
def study_lengths(  # type: ignore[misc]  # lengths and seeds replace prompt_len and seed
    images: Sequence[Any],
    model: Any,
    referee: Any,
    lengths: Sequence[int] = LENGTHS,
    seeds: Sequence[int] = (0,),
    *,
    out: str | os.PathLike | None = None,
    **options: Unpack[SearchOptions],
) -> LengthStudy:
    """Learns prompts of several lengths for pictures, and scores each by the model and by a referee.

    A prompt that fits the model better and the referee no better over-fits. All pictures and seeds of a length share
    batches; each prompt is that of `invert` alone.

    Args:
        images: a list of what `load_image` takes; a path is shown as the picture's name.
        model: from `load_clip`; it learns the prompts.
        referee: a second model from `load_clip`, which takes no part in the search.
        lengths: numbers of learned tokens, each once; they take the place of `prompt_len`.
        seeds: seeds, each once; they take the place of `seed`.
        out: a folder that keeps each finished prompt; the same call continues there. More pictures, lengths and seeds
            may be added; a folder of other models or options is refused. Default: nothing is kept.

    Returns:
        A `LengthStudy` of all finished prompts. After Ctrl-C, of those that were finished.

    Raises:
        ValueError, TypeError: an argument or an option cannot be used; the message names it.
        FullDiskError: the disk is full; what was written is kept.
    """
    for name, instead in (("prompt_len", "lengths"), ("seed", "seeds")):
        if name in options:
            raise TypeError(f"a study of lengths takes {instead} in place of {name}")
    job = LengthJob(images, model, referee, lengths, seeds, out, {**options})
    for length in job.lengths:
        if not job.learn(length, job.config.callback):
            break
    return job.study


class LengthJob:
    """The work of `study_lengths`, one length after the other.

    Args:
        images, model, referee, lengths, seeds, out, options: as for `study_lengths`.
        names: what the pictures are called. Default: their paths, else their numbers.

    Attributes:
        lengths, seeds: the checked values.
        names: the pictures' names.
        config: the options, with the first length and seed.
        study: what is finished so far.
    """

    def __init__(
        self,
        images: Sequence[Any],
        model: Any,
        referee: Any,
        lengths: Sequence[int],
        seeds: Sequence[int],
        out: str | os.PathLike | None,
        options: dict[str, Any],
        names: Sequence[str] | None = None,
    ) -> None:
        self.lengths = checked_values("lengths", lengths, 1, "positive integers")
        self.seeds = checked_values("seeds", seeds, 0, "integers, not negative")
        configs = [config_from({**options, "prompt_len": n, "seed": s}) for n in self.lengths for s in self.seeds]
        self.config = configs[0]
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            raise TypeError(f"images must be a list of images; got {type(images).__name__}")
        if not images:
            raise ValueError("images must hold at least one image; got an empty list")
        if referee is None:
            raise ValueError("referee must be a second model from load_clip; got None")
        check_model(model, "encode_images", "fingerprint")
        check_referee(referee, model, "encode_images", "encode_texts", "fingerprint")
        for length in {min(self.lengths), max(self.lengths)}:  # what does not fit is said before all else
            PromptSearch(model, self._config(length))
        loaded = [load_image(image) for image in images]
        self.names = list(names or (_name(image, k) for k, image in enumerate(images)))
        self._pictures = [hashlib.sha256(f"{p.size}".encode() + p.tobytes()).hexdigest()[:16] for p in loaded]
        for k, picture in enumerate(self._pictures):
            if picture in self._pictures[:k]:
                first = self.names[self._pictures.index(picture)]
                raise ValueError(f"images must hold each picture once; {self.names[k]} is the same as {first}")
        self._model, self._referee = model, referee
        self._folder = None if out is None else Path(out)
        if self._folder is not None:
            check_folder(self._folder)
            check_manifest(self._folder, self._configuration())
        self._targets, self._seen = model.encode_images(loaded), referee.encode_images(loaded)
        self._found = {key: run for key in self._keys(self.lengths) if (run := self._kept(*key)) is not None}

    def _config(self, length: int, callback: Any = None, every: int | None = None) -> SearchConfig:
        return replace(self.config, prompt_len=length, callback=callback, every=every or self.config.every)

    def _keys(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        """Returns the runs of some lengths: each one's length, seed and number of its picture."""
        return [(n, seed, k) for n in lengths for seed in self.seeds for k in range(len(self.names))]

    def _path(self, length: int, seed: int, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"run-len{length}-seed{seed}-{self._pictures[number]}.json"

    def _kept(self, length: int, seed: int, number: int) -> LengthRun | None:
        """Returns the finished run that the folder holds, under the picture's name of this call."""
        run = None if self._folder is None else read_run(self._path(length, seed, number), LengthRun)
        return None if run is None else replace(run, image=self.names[number])

    def _configuration(self) -> dict[str, Any]:
        """Returns what decides on all prompts of a folder, as plain values."""
        chosen = search_part(self.config)
        for name in ("seed", "prompt_len"):
            del chosen[name]
        own = {f"referee: {name}": value for name, value in self._referee.fingerprint().items()}
        return {**chosen, **own, **model_part(self._model, self.config, str(self._model.device))}

    @property
    def study(self) -> LengthStudy:
        """What is finished so far; a study that lacks prompts is interrupted."""
        runs = [self._found[key] for key in self._keys(self.lengths) if key in self._found]
        missing = len(runs) < len(self._keys(self.lengths))
        return LengthStudy(self._model.name, self._referee.name, runs, missing)

    def missing(self, length: int) -> list[tuple[int, int, int]]:
        """Returns the runs of a length that are not finished: each one's length, seed and number of its picture."""
        return [key for key in self._keys([length]) if key not in self._found]

    def learn(self, length: int, callback: Any = None, every: int | None = None) -> bool:
        """Learns the prompts of a length that are missing, in batches; returns whether all were finished."""
        missing = self.missing(length)
        if not missing:
            return True
        with ExitStack() as stack:
            if self._folder is not None:
                stack.enter_context(exclusive_lock(self._folder, _STEM))
                ensure_manifest(self._folder, self._configuration(), self._model.name)
            search = PromptSearch(self._model, self._config(length, callback, every))
            return learn_runs(search, self._groups(missing), len(missing), lambda k, r: self._keep(missing[k], r))

    def _groups(self, missing: Sequence[tuple[int, int, int]]) -> Iterator[tuple[list[int], Similarity, int]]:
        """Yields the missing runs of each seed, by their numbers in the list."""
        for seed in self.seeds:
            numbers = [k for k, key in enumerate(missing) if key[1] == seed]
            if numbers:
                rows = torch.tensor([missing[k][2] for k in numbers], device=self._targets.device)
                yield numbers, Similarity(self._targets[rows]), seed

    def _keep(self, key: tuple[int, int, int], result: PromptResult) -> None:
        """Scores a finished prompt by the referee, and writes it."""
        length, seed, number = key
        add_referee([result], self._seen[number : number + 1], self._referee)
        run = LengthRun(self.names[number], self._pictures[number], length, seed, error=result.error)
        if not result.error:
            assert result.referee_score is not None
            run.prompt, run.ids = result.prompt, result.ids
            run.text_score, run.referee_score = result.text_score, result.referee_score
        self._found[key] = run
        if self._folder is not None:
            text = json.dumps(finite_or_none(dataclasses.asdict(run)), ensure_ascii=False, indent=1)
            write_run(self._path(*key), text)


def _name(image: Any, number: int) -> str:
    """Returns a picture's path, or a name with its number."""
    return str(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"


def checked_values(name: str, values: Any, least: int, kind: str) -> list[int]:
    """Returns the whole numbers of a list.

    Raises:
        ValueError: it is no list, is empty, or has a value twice or one that is not `kind`.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__") or not list(values):
        raise ValueError(f"{name} must be a list of at least one value; got {values!r}")
    found = [whole_number(name, value, least, kind) for value in values]
    if len(set(found)) < len(found):
        raise ValueError(f"{name} must hold each value once; got {found}")
    return found
