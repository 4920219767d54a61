"""Locks in a folder of results; the system lifts them however a run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no locks here: two runs of one shard are not kept apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def exclusive_lock(folder: Path, stem: str) -> Iterator[None]:
    """Lets only one run at a time write the shards of a stem.

    It also removes the temporary files of runs that were killed.

    Raises:
        ValueError: another run holds the lock.
    """
    with free_lock(folder, stem) as free:
        if not free:
            raise ValueError(
                f"another run is writing {stem} into {folder}; give each its own --shard i/n, or wait for it"
            )
        for path in folder.glob(".part-*.tmp"):
            other = path.name.removeprefix(".").partition(".")[0].rpartition("-")[0]
            with free_lock(folder, other, held=other == stem) as unlocked:
                if unlocked:
                    path.unlink(missing_ok=True)
        yield


@contextmanager
def free_lock(folder: Path, stem: str, held: bool = False) -> Iterator[bool]:
    """Yields whether the lock of a stem was free; if so, it is held inside the context.

    Args:
        held: whether this run holds the lock already, or needs none; the answer is then yes.
    """
    if fcntl is None or held:
        yield True
        return
    with (folder / f".{stem}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True


@contextmanager
def repair_lock(folder: Path) -> Iterator[None]:
    """Waits until no other run takes rows out of the folder's files, so that none undoes the other's work."""
    if fcntl is None:
        yield
        return
    with (folder / ".repair.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
