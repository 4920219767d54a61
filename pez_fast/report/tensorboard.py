"""A callback that writes a search down for TensorBoard, where it can be watched over steps and over time."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pez_fast.report import console

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from pez_fast.config import Progress

MOST = 16  # targets with a curve of their own


class TensorBoard:
    """A callback of the tasks that writes the best cosines and prompts so far, at `step + refined`.

    Tags, of the first `MOST` targets: "cosine/NAME", and "prompt/NAME" where the prompt has changed; without names their numbers,
    or where there is one target "cosine" and "prompt". Of several targets together: "cosine_of_all/mean" and "cosine_of_all/best",
    of those that are begun. Where the targets do not fit into one batch a step can come more than once.

    Args:
        folder: of the event files; one for each search, or TensorBoard draws them as one.
        names: of all targets, in their order.
        also: another callback, which is called as well and whose answer is returned.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, names: Sequence[str] | None = None, also: Callable[[Progress], object] | None = None
    ) -> None:
        _summary_writer()
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"the folder {folder} cannot be written: {error.strerror}") from None
        self.folder, self.also = folder, also
        self.names = None if names is None else list(names)
        self._tags = _tags(self.names[:MOST]) if self.names else []
        self._writer: SummaryWriter | None = None
        self._written: dict[str, str] = {}

    @property
    def every(self) -> int:
        """The option of that name that the search should be given: what `also` wants, else the option's default."""
        from pez_fast.config import SearchConfig

        return getattr(self.also, "every", SearchConfig.every)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, state: Progress) -> object:
        if self.names is not None and len(self.names) != len(state.scores):
            raise ValueError(f"names must name each of the {len(state.scores)} targets; got {len(self.names)}")
        if self._writer is None:
            self._writer = _summary_writer()(str(self.folder))
        writer, at = self._writer, state.step + state.refined
        begun = [score for score in state.scores if math.isfinite(score)]
        if len(state.scores) > 1 and begun:
            writer.add_scalar("cosine_of_all/mean", sum(begun) / len(begun), at)
            writer.add_scalar("cosine_of_all/best", max(begun), at)
        for k, (prompt, score) in enumerate(zip(state.prompts[:MOST], state.scores[:MOST], strict=True)):
            if not math.isfinite(score):
                continue  # it waits
            name = f"/{self._tags[k]}" if self._tags else f"/{k}" if len(state.scores) > 1 else ""
            writer.add_scalar(f"cosine{name}", score, at)
            if self._written.get(name) != prompt:
                self._written[name] = prompt
                writer.add_text(
                    f"prompt{name}", "    " + console.one_line(prompt), at
                )  # indented: shown as it is, not as Markdown
        writer.flush()
        return self.also(state) if self.also is not None else None


def watch(names: Sequence[str], steps: int, folder: Path | None = None) -> AbstractContextManager[Any]:
    """`console.watch`, and beside it a `TensorBoard` where there is a folder, which is checked at once; names are those of files."""
    if folder is None:
        return console.watch(names, steps)
    return _beside(
        TensorBoard(folder, [Path(name).name for name in names] if len(names) > 1 else None),
        console.watch(names, steps),
    )


@contextmanager
def _beside(log: TensorBoard, progress: console.PlainProgress | console.LiveProgress) -> Iterator[TensorBoard]:
    with progress, log:
        log.also = progress
        yield log


def _summary_writer() -> Any:
    """The class, or one sentence that says what to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "runs are written down by tensorboard, which cannot be imported; pip install 'pez_fast[tensorboard]'"
        ) from None
    return SummaryWriter


def _tags(names: Sequence[str]) -> list[str]:
    """The names in characters that a tag can have, at most 80 of them and a number where two would be the same."""
    tags: list[str] = []
    for name in names:
        tag = unique = re.sub(r"[^-/\w.]+", "_", str(name)).strip("/")[:80] or "_"
        number = 1
        while unique in tags:
            number += 1
            unique = f"{tag}_{number}"
        tags.append(unique)
    return tags
