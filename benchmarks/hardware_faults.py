"""Puts faults into an implementation's search and splice, in this process, to test that hardware.py survives them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from pez_fast.ops import IMPLEMENTATIONS

Operation = Callable[..., Any]


def put_in(impl: str, kind: str) -> None:
    package = IMPLEMENTATIONS[impl].package
    for name, wrap in {"nearest": KINDS[kind][0], "splice": KINDS[kind][1]}.items():
        module = import_module(f"{package}.{name}")
        setattr(module, name, wrap(getattr(module, name)))


def wrong_ids(search: Operation) -> Operation:
    """The first row gets the id of the allowed token behind the right one."""

    def nearest(x, weight, ids, prepared, counts=None):
        found, similarity = search(x, weight, ids, prepared, counts)
        found[:1] = ids[(torch.searchsorted(ids, found[:1]) + 1) % len(ids)]
        return found, similarity

    return nearest


def wrong_rows(splice: Operation) -> Operation:
    return lambda *given: splice(*given) + 1


def instead(act: Callable[[], None]) -> Callable[[Operation], Operation]:
    def wrap(operation: Operation) -> Operation:
        def fails(*given, **more):
            act()

        return fails

    return wrap


def fail() -> None:
    raise RuntimeError("this fault was put in")


def hang() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # like a kernel that never ends: only SIGKILL helps
    while True:
        time.sleep(1)


KINDS = {
    "wrong": (wrong_ids, wrong_rows),
    "crash": (instead(os.abort), instead(os.abort)),
    "raise": (instead(fail), instead(fail)),
    "hang": (instead(hang), instead(hang)),
}
