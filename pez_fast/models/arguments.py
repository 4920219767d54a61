"""Checks of the arguments of functions that load models, and silence while they load."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pez_fast._shared.devices import device_from
from pez_fast.models.reasons import why_no_cuda


def checked_name(name: object) -> str:
    """Returns the name of a model or a folder as text.

    Raises:
        ValueError: it is neither a text nor a path, or is empty.
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(f"name must be the name of a model or a folder; got {name!r}")
    return str(os.fspath(name))


def checked_device(device: str | torch.device | None) -> torch.device:
    """Returns the device that a user names, or the default.

    Raises:
        ValueError: no device of torch has this name, or it is not here; the sentence says why.
    """
    try:
        found = device_from(device)
    except ValueError as error:
        raise ValueError(f"{error}: {why_no_cuda()}" if "no CUDA" in str(error) else str(error)) from None
    if found.type == "meta":
        raise ValueError(f"device must be one that computes; got {device!r}")
    if found.type != "cpu":
        count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        present = torch.accelerator.current_accelerator() if count else None
        if present is None or present.type != found.type:
            raise ValueError(f"device {str(device)!r} cannot be used: torch finds no such device here")
        if (found.index or 0) >= count:
            raise ValueError(f"device {str(device)!r} cannot be used: torch finds {count} of them here, from 0 on")
    return found


def checked_dtype(dtype: object) -> torch.dtype:
    """Returns the dtype of a model's weights.

    Raises:
        ValueError: it is no floating-point dtype of torch.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype of torch; got {dtype!r}")
    return dtype


@contextmanager
def quiet() -> Iterator[None]:
    """Silences open_clip and the hub's client while they load; errors that matter are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
