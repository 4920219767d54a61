"""Checks of the options of methods: each error is one sentence with the option's name and value."""

from __future__ import annotations

import math
from operator import index


def check_counts(method: object, *names: str) -> None:
    """Makes plain ints of options of a frozen dataclass.

    Raises:
        ValueError: one of them is not a positive integer.
    """
    for name in names:
        value = getattr(method, name)
        if isinstance(value, bool) or not hasattr(value, "__index__") or index(value) < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}")
        object.__setattr__(method, name, index(value))


def check_numbers(method: object, *names: str) -> None:
    """Makes plain floats of options of a frozen dataclass.

    Raises:
        ValueError: one of them is not a finite number, or is negative.
    """
    for name in names:
        value = getattr(method, name)
        if isinstance(value, bool) or not hasattr(value, "__float__") or not 0 <= float(value) < math.inf:
            raise ValueError(f"{name} must be a finite number, not negative; got {value!r}")
        object.__setattr__(method, name, float(value))
