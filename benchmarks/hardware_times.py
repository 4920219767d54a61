"""The time of an implementation: of the search and of splice, and of each kernel by itself."""

from __future__ import annotations

import itertools
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import splice as splices_of
import torch
from measure import captured, rotated, timed
from nearest import Setting, floor_ms, measured
from torch.profiler import ProfilerActivity, profile

from pez_fast import TokenTable, nearest_token
from pez_fast.ops import IMPLEMENTATIONS

if TYPE_CHECKING:
    from hardware_child import Task

TABLES = 8  # of the full size, 800 MB in float16, so that nothing of the next table is in an L2 cache of 50 MB
KERNEL_CALLS = 8
KERNELS_SHOWN = 16


def search(task: Task) -> None:
    """Entries as nearest.py's, for every shape and number of rows; wrong ids are counted, and timed too."""
    for shape in task.shapes:
        task.at(f"the table {shape}")
        setting = Setting(shape, max(task.rows), task.device)
        for n in task.rows:
            task.at(f"search of {n} rows in {shape}")
            entries = measured(setting, task.impl, n, task.seconds, memory=task.device == "cuda")
            task.add(*entries)
            if n in task.rotate:
                task.at(f"search of {n} rows in several tables {shape} by turns")
                task.add(by_turns(setting, task.impl, n, task.seconds, entries[0]))


@cache
def tables(setting: Setting) -> list[TokenTable]:
    """TABLES tables of the setting's size, the first its own; made once."""
    generator = torch.Generator(setting.device).manual_seed(1)
    more = TABLES - 1 if setting.device == "cuda" else 1
    others = [torch.empty_like(setting.weight).normal_(generator=generator) for _ in range(more)]
    return [setting.table, *(TokenTable(weight) for weight in others)]


def calls(setting: Setting, impl: str, n: int) -> list[Any]:
    """One search for each table."""
    for table in tables(setting):
        table.prepared(impl)
    return [partial(nearest_token, setting.x[:n], table, impl) for table in tables(setting)]


def by_turns(setting: Setting, impl: str, n: int, seconds: float, like: dict[str, Any]) -> dict[str, Any]:
    """The time of one call in a graph of calls with a table each: no launch between them, no table in the cache."""
    label = f"{impl} (graph of {len(tables(setting))} tables)"
    if setting.device == "cuda" and not IMPLEMENTATIONS[impl].capturable:
        return {"name": label, "rows": n, "skipped": "it looks at values, which a graph cannot"}
    try:
        took = rotated(calls(setting, impl, n), setting.device, seconds)
    except RuntimeError as e:
        if setting.device == "cuda":
            torch.cuda.synchronize()  # a sticky CUDA error ends this process here
        return {"name": label, "rows": n, "skipped": str(e).splitlines()[0]}
    floor = floor_ms(setting, n)
    kept = {key: like[key] for key in ("ours", "rows", "vocabulary", "d", "wrong_ids", "sampled_rows")}
    return {"name": label, **kept, **took._asdict(), "floor_ms": floor, "share_of_floor": floor and floor / took.ms}


def splices(task: Task) -> None:
    """As splice.py, except that a wrong result is reported and timed too."""
    for name, shape in (splices_of.TINY if task.tiny else splices_of.SHAPES).items():
        given = splices_of.arguments(shape, task.device)
        way = splices_of.ways(task.device, [task.impl])[task.impl]
        task.at(f"splice, {name}")
        try:
            splices_of.check(way, given, task.impl)
            wrong = None
        except SystemExit as e:
            wrong = str(e.code)
        for what, run in (("forward", splices_of.forward), ("forward and backward", splices_of.both)):
            task.at(f"splice, {name}, {what}")
            call = partial(run, way, given)
            entry = {"what": what, "case": name, "shape": shape, "wrong": wrong}
            task.add({"name": task.impl, **entry, **timed(call, task.device, task.seconds)._asdict()})
            if task.device == "cuda":
                try:
                    replay = captured(call)[0]
                    took: dict[str, Any] = timed(replay, task.device, task.seconds)._asdict()
                except RuntimeError as e:
                    torch.cuda.synchronize()
                    took = {"skipped": str(e).splitlines()[0]}
                task.add({"name": f"{task.impl} (graph)", **entry, **took})


def kernels(task: Task) -> None:
    """Mean microseconds of a search's kernels (on a CPU: torch's operators); tables take turns, so none is cached."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if task.device == "cuda" else [])
    for shape in task.shapes:
        setting = Setting(shape, max(task.rows), task.device)
        for n in task.rows:
            task.at(f"kernels of a search of {n} rows in {shape}")
            runs = calls(setting, task.impl, n)
            for run in runs:
                run()
            with profile(activities=activities) as seen:
                for run in itertools.islice(itertools.cycle(runs), KERNEL_CALLS):
                    run()
                if task.device == "cuda":
                    torch.cuda.synchronize()
            found = kernel_times(seen, task.device)
            total = sum(each["us_per_search"] for each in found)
            task.add({"rows": n, "shape": shape, "us_per_search": total, "kernels": found[:KERNELS_SHOWN]})


def kernel_times(seen: Any, device: str) -> list[dict[str, Any]]:
    """Name, calls in a search, mean microseconds; the longest first."""
    found = []
    for event in seen.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if device == "cuda" and (not on_gpu or getattr(event, "is_user_annotation", False)):
            continue
        total = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        found.append(
            {
                "name": event.key[:160],
                "calls_per_search": event.count / KERNEL_CALLS,
                "mean_us": total / event.count,
                "us_per_search": total / KERNEL_CALLS,
            }
        )
    return sorted(found, key=lambda each: -each["us_per_search"])
