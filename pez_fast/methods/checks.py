"""Checks of the options of methods: each error is one sentence with the option's name and value."""

from __future__ import annotations

from pez_fast.config import finite_number, whole_number


def check_counts(method: object, *names: str) -> None:
    """Makes plain ints of options of a frozen dataclass.

    Raises:
        ValueError: one of them is not a positive integer.
    """
    for name in names:
        object.__setattr__(method, name, whole_number(name, getattr(method, name), 1, "a positive integer"))


def check_numbers(method: object, *names: str) -> None:
    """Makes plain floats of options of a frozen dataclass.

    Raises:
        ValueError: one of them is not a finite number, or is negative.
    """
    for name in names:
        object.__setattr__(method, name, finite_number(name, getattr(method, name)))
