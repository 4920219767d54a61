"""The cost of a call: time and memory."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Run = Callable[[], Any]
MOST_RUNS = 500
CACHE = 1 << 28  # bytes, more than any GPU's L2


class Timing(NamedTuple):
    """Milliseconds of one call: the median and the 20% and 80% quantiles of `count` calls."""

    ms: float
    q20: float
    q80: float
    runs: int


def timed(run: Run, device: str, seconds: float, least: int = 5) -> Timing:
    """Repeats a call for about so many seconds, after two calls that do not count.

    On CUDA events on the stream time each call, and the L2 cache is emptied before it: between two searches of an
    optimisation a whole model is read.
    """
    runs = _repetitions(run, device, seconds, least)
    return _timing(_cuda_times(run, runs) if device == "cuda" else _times(run, runs))


def rotated(calls: list[Run], device: str, seconds: float, least: int = 5) -> Timing:
    """The time of one of several calls, each with a table of its own; on CUDA all are one graph, whose time they share.

    So the time of a short call contains no launch from the host, and the cache need not be emptied because the tables
    exceed it.
    """

    def all_of_them() -> list[Any]:
        return [call() for call in calls]

    run = captured(all_of_them)[0] if device == "cuda" else all_of_them
    runs = _repetitions(run, device, seconds, least)
    times = _cuda_times(run, runs, emptied=False) if device == "cuda" else _times(run, runs)
    return _timing([t / len(calls) for t in times])


def _timing(times: list[float]) -> Timing:
    quantiles = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), quantiles[0], quantiles[3], len(times))


def _repetitions(run: Run, device: str, seconds: float, least: int) -> int:
    run()
    begun = _finished(device)
    run()
    once = _finished(device) - begun
    return min(MOST_RUNS, max(least, round(seconds / max(once, 1e-9))))


def _finished(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _times(run: Run, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        run()
        times.append((time.perf_counter() - begun) * 1e3)
    return times


def _cuda_times(run: Run, runs: int, emptied: bool = True) -> list[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for start, stop in events:
        if emptied:
            _empty_cache()
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in events]


def _empty_cache() -> None:
    """Reads more than the L2 cache holds. Written data would stay there and be written back during a call."""
    torch.sum(_buffer(), 0, out=_sum())


@cache
def _buffer() -> Tensor:
    return torch.zeros(CACHE // 4, dtype=torch.float32, device="cuda")


@cache
def _sum() -> Tensor:
    return torch.empty((), dtype=torch.float32, device="cuda")


def captured(run: Run) -> tuple[Run, Any]:
    """A call as a CUDA graph: the function that replays it, and where each replay leaves the call's result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result


def peak_memory(run: Run, device: str) -> int | None:
    """Bytes that a call needs beyond those held before it: of the GPU's allocator, or of the process.

    None if /proc does not say.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    forget = Path("/proc/self/clear_refs")
    if not sys.platform.startswith("linux") or not forget.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that the preparation freed must not hide what the call takes
    forget.write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def sample(rows: int, most: int, device: str) -> Tensor:
    """The numbers of up to `most` of so many rows, ascending, the first and the last included."""
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).round().long().unique().to(device)
