"""Choices of rows by a seed: held-out rows, a few of each class, and the minibatch of a step."""

from __future__ import annotations

import random
import threading
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Row = TypeVar("Row")

_MOST_ORDERS, _MOST_NUMBERS = 1024, 1 << 25  # of epochs that are kept: 128 MiB at most
_orders: OrderedDict[tuple[int, int, int], array[int]] = OrderedDict()
_lock = threading.Lock()


def split_rows(
    rows: Sequence[Row], classes: Sequence[Hashable], held_out: int | float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Returns the rows to learn from and the rows held out, with each class in both as in all; the order is kept.

    Each class keeps at least one row to learn from, and has at least one held out if there is room for all.

    Args:
        rows: what is split.
        classes: the class of each row.
        held_out: how many rows to hold out, or as a float which fraction of them, from 0.0 to less than 1.0.
        seed: the same seed makes the same choice.

    Raises:
        ValueError: an argument has another value, or more rows shall be held out than the classes can spare.
    """
    groups = _groups(rows, classes)
    _check_whole("seed", seed)
    if isinstance(held_out, bool) or not isinstance(held_out, (int, float)) or not held_out >= 0:
        raise ValueError(f"held_out must be a number of rows or a fraction from 0.0 to less than 1.0; got {held_out!r}")
    if isinstance(held_out, float) and held_out >= 1:
        raise ValueError(f"held_out as a fraction must be less than 1.0 (a number of rows is an int); got {held_out!r}")
    total = held_out if isinstance(held_out, int) else round(held_out * len(rows))
    if total > len(rows) - len(groups):
        raise ValueError(
            f"held_out={held_out!r} leaves too few of {len(rows)} rows; "
            f"one of each of {len(groups)} classes must stay to learn from"
        )
    rng = random.Random(f"held out {seed}")
    counts = _shares([len(places) for places in groups.values()], total)
    chosen = {k for places, count in zip(groups.values(), counts, strict=True) for k in rng.sample(places, count)}
    train = [row for k, row in enumerate(rows) if k not in chosen]
    return train, [row for k, row in enumerate(rows) if k in chosen]


def few_shot(
    rows: Sequence[Row],
    classes: Sequence[Hashable],
    shots: int,
    seed: int,
    known: Iterable[Hashable] | None = None,
) -> list[Row]:
    """Returns `shots` rows of each class; the order is kept.

    Args:
        rows: what is chosen from.
        classes: the class of each row.
        shots: how many rows of each class.
        seed: the same seed makes the same choice.
        known: the classes that must be there, such as `range(len(verbalizer))`. Default: those that are.

    Raises:
        ValueError: a class has fewer rows; the message names it and their number.
    """
    groups = _groups(rows, classes)
    _check_whole("seed", seed)
    _check_whole("shots", shots, 1)
    for name in (*groups, *(known or ())):
        if (count := len(groups.get(name, ()))) < shots:
            raise ValueError(f"shots={shots} is more than class {name!r} has: {count} of {len(rows)} rows")
    rng = random.Random(f"few shots {seed}")
    chosen = {k for places in groups.values() for k in rng.sample(places, shots)}
    return [row for k, row in enumerate(rows) if k in chosen]


def draws(seed: int, step: int, count: int, size: int) -> list[int]:
    """Returns the indices of a step's minibatch, which depend on nothing but the arguments.

    The rows are shuffled anew for each epoch, the epochs follow one another, and each step takes the next `count`. So
    each row comes once in an epoch; where the end of one epoch and the beginning of the next meet in a minibatch, a
    row can be in it twice. If `count` is `size` or more, the minibatch is all rows in their order.

    Args:
        seed: the same seed makes the same minibatches.
        step: from 0 on.
        count: the rows of a minibatch.
        size: how many rows there are.

    Raises:
        ValueError: an argument is no such number.
    """
    _check_whole("seed", seed)
    _check_whole("step", step, 0)
    _check_whole("count", count, 1)
    _check_whole("size", size, 1)
    if count >= size:
        return list(range(size))
    found: list[int] = []
    epoch, place = divmod(step * count, size)
    while len(found) < count:
        found += _permutation(seed, epoch, size)[place : place + count - len(found)]
        epoch, place = epoch + 1, 0
    return found


def _permutation(seed: int, epoch: int, size: int) -> array[int]:
    """Returns the rows' order in an epoch; the last ones are kept, as a search has many seeds and asks in turn."""
    key = (seed, epoch, size)
    with _lock:
        if key not in _orders:
            order = array("I", range(size))
            random.Random(f"epoch {seed} {epoch}").shuffle(order)
            while _orders and (len(_orders) >= _MOST_ORDERS or sum(map(len, _orders.values())) + size > _MOST_NUMBERS):
                _orders.popitem(last=False)
            _orders[key] = order
        _orders.move_to_end(key)
        return _orders[key]


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Returns how many rows each class gives, in proportion as far as whole numbers go."""
    least = 1 if total >= len(sizes) else 0
    counts = [min(least, size - 1) for size in sizes]
    for _ in range(total - sum(counts)):
        open_ = [k for k, size in enumerate(sizes) if counts[k] < size - 1]
        most = max(open_, key=lambda k: total * sizes[k] - counts[k] * sum(sizes))  # whole numbers, so no rounding
        counts[most] += 1
    return counts


def _groups(rows: Sequence[Row], classes: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Returns the places of each class's rows, the classes as they first come."""
    if not rows or len(rows) != len(classes):
        raise ValueError(f"rows and classes must be equally many, one or more; got {len(rows)} and {len(classes)}")
    groups: dict[Hashable, list[int]] = {}
    for k, name in enumerate(classes):
        groups.setdefault(name, []).append(k)
    return groups


def _check_whole(name: str, value: int, least: int | None = None) -> None:
    """Refuses what is no whole number, or one below the least."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        kind = "a whole number" if least is None else f"a whole number from {least} on"
        raise ValueError(f"{name} must be {kind}; got {value!r}")
