"""A callback that records a search for TensorBoard, over steps and over time."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pez_fast._shared.installation import install_hint
from pez_fast.report import console
from pez_fast.report.console import IMAGES, Words
from pez_fast.report.output import check_folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from pez_fast.config import Progress

MAX_CURVES = 16  # the most targets with curves of their own


class TensorBoard:
    """A callback that records the best cosines and prompts so far, at step `step + refined`.

    Each of the first `MAX_CURVES` targets has the tags "cosine/NAME" and, when its prompt has changed, "prompt/NAME".
    Without names, numbers replace them; a single target has the tags "cosine" and "prompt". Several targets also have
    the tags "cosine_of_all/mean" and "cosine_of_all/best", over all targets that are begun. If the targets do not fit
    into one batch, a step can occur more than once.

    Args:
        folder: the folder of the event files. Give each search its own; TensorBoard draws those of a folder as one.
        names: the names of all targets, in their order.
        also: another callback that is called too; its answer is returned.
        score: what the scores are; it takes the place of "cosine" in the tags.

    Attributes:
        every: the value for the search's option `every`.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: the folder cannot be written, or (when called) there is not one name for each target.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str] | None = None,
        also: Callable[[Progress], object] | None = None,
        score: str = IMAGES.score,
    ) -> None:
        _summary_writer()
        check_folder(folder)
        self.folder, self.also, self.score = folder, also, score
        self.names = None if names is None else list(names)
        self._tags = _tags(self.names[:MAX_CURVES]) if self.names else []
        self._writer: SummaryWriter | None = None
        self._written: dict[str, str] = {}
        self._failed = False

    @property
    def every(self) -> int:
        """The value for the search's option `every`: that of `also`, else the option's default."""
        from pez_fast.config import SearchConfig

        return getattr(self.also, "every", SearchConfig.every)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not self._failed:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def __call__(self, state: Progress) -> object:
        """Writes the cosines and the changed prompts; returns the answer of `also`.

        Where the folder takes no more (a full disk), a warning says so, and the search goes on unrecorded.
        """
        if self.names is not None and len(self.names) != len(state.scores):
            raise ValueError(f"names must name each of the {len(state.scores)} targets; got {len(self.names)}")
        if not self._failed:
            try:
                self._record(state)
            except OSError as error:
                self._give_up(error)
        return self.also(state) if self.also is not None else None

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        reason = error.strerror or error
        warnings.warn(f"the record in {self.folder} ends here: {reason}; the search goes on without it", stacklevel=3)

    def _record(self, state: Progress) -> None:
        if self._writer is None:
            self._writer = _summary_writer()(str(self.folder))
        writer, at = self._writer, state.step + state.refined
        finite = [score for score in state.scores if math.isfinite(score)]
        if len(state.scores) > 1 and finite:
            writer.add_scalar(f"{self.score}_of_all/mean", sum(finite) / len(finite), at)
            writer.add_scalar(f"{self.score}_of_all/best", max(finite), at)
        for k, (prompt, score) in enumerate(zip(state.prompts[:MAX_CURVES], state.scores[:MAX_CURVES], strict=True)):
            if not math.isfinite(score):
                continue  # the target waits
            name = f"/{self._tags[k]}" if self._tags else f"/{k}" if len(state.scores) > 1 else ""
            writer.add_scalar(f"{self.score}{name}", score, at)
            if self._written.get(name) != prompt:
                self._written[name] = prompt
                # TensorBoard shows indented text as it is, not as Markdown.
                writer.add_text(f"prompt{name}", "    " + console.one_line(prompt), at)
        writer.flush()


def watch(
    names: Sequence[str], steps: int, folder: Path | None = None, words: Words = IMAGES
) -> AbstractContextManager[Any]:
    """Returns `console.watch`, with a `TensorBoard` beside it if there is a folder.

    Args:
        names: file names of the targets; the tags take their last parts.
        steps: updates of the first stage.
        folder: the folder of the event files, which is checked at once.
        words: how targets and scores are called.
    """
    progress = console.watch(names, steps, words)
    if folder is None:
        return progress
    tags = [Path(name).name for name in names] if len(names) > 1 else None
    return _beside(TensorBoard(folder, tags, score=words.score), progress)


@contextmanager
def _beside(log: TensorBoard, progress: console.PlainProgress | console.LiveProgress) -> Iterator[TensorBoard]:
    """Enters both callbacks as one."""
    with progress, log:
        log.also = progress
        yield log


def _summary_writer() -> Any:
    """Returns torch's SummaryWriter, or raises an ImportError that says what to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            f"runs are written down by tensorboard, which cannot be imported; {install_hint('tensorboard')}"
        ) from None
    return SummaryWriter


def _tags(names: Sequence[str]) -> list[str]:
    """Returns the names in the characters of a tag, 80 at most, with a number where two would be equal."""
    tags: list[str] = []
    for name in names:
        tag = unique = re.sub(r"[^-/\w.]+", "_", str(name)).strip("/")[:80] or "_"
        number = 1
        while unique in tags:
            number += 1
            unique = f"{tag}_{number}"
        tags.append(unique)
    return tags
