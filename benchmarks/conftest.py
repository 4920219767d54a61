"""Serves `pytest benchmarks --benchmark-only`: quick times while one works on a kernel.

`--device cuda` and `--big` choose the device and the size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nearest import Setting

from pez_fast import info

ROWS = {False: (16, 256), True: (16, 1024, 4096)}  # the key is --big


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where to run")
    parser.addoption("--big", action="store_true", help="49,408 tokens of width 1024, not 8,192 of 256")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rows" in metafunc.fixturenames:
        metafunc.parametrize("rows", ROWS[metafunc.config.getoption("--big")])


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    chosen = request.config.getoption("--device")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return chosen


@pytest.fixture(scope="session")
def big(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--big")


@pytest.fixture(scope="session")
def setting(device: str, big: bool) -> Setting:
    return Setting("49408x1024" if big else "8192x256", max(ROWS[big]), device)


@pytest.fixture
def usable(device: str) -> Callable[[str], None]:
    """Returns a function that skips the test where an implementation cannot run."""

    def check(impl: str) -> None:
        reason = info(device)["implementations"][impl]
        if reason is not True:
            pytest.skip(reason)

    return check


@pytest.fixture
def measure(benchmark: Any, device: str) -> Callable[[str, Callable[[], Any]], None]:
    """Returns a function that times a call until the GPU is done; the calls of a group are compared."""

    def run(group: str, call: Callable[[], Any]) -> None:
        def synchronised() -> None:
            call()
            torch.cuda.synchronize()

        benchmark.group = group
        benchmark(synchronised if device == "cuda" else call)

    return run
