"""Every GPU kernel on the PTX machine, under many schedules. Needs nvcc and no GPU.

    python benchmarks/ptx_schedules.py --schedules 2000 --json benchmarks/results/ptx_schedules.json

It runs the checks of tests/ptx_checks.py on CUDA and Triton kernels: ids and cosines as the oracle's, keys of the scans
to the bit. Each seed is one schedule; the checks take turns until there are enough. Exits with 1 if a run is wrong, and
prints the fault and the seed that shows it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path

from provenance import write
from tables import aligned

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from ptx.schedule import Schedule
from ptx_checks import CUDA, TRITON
from ptx_pool import Outcome, Pool

KERNELS = {  # a word of the launched kernel's name: what it is called here
    "nearest_query_kernelILb1": "query, packed",
    "nearest_query_kernelILb0": "query, strided",
    "nearest_few_kernel": "few",
    "nearest_scan_sm80": "scan_sm80",
    "nearest_scan_sm90": "scan_sm90",
    "nearest_decide_kernel": "decide",
    "splice_backward_kernel": "splice_backward",
    "splice_kernel": "splice",
    "_nearest_query": "Triton query",
    "_nearest_scan_few": "Triton scan, few rows",
    "_nearest_scan_many": "Triton scan, many rows",
    "_nearest_decide": "Triton decide",
    "_splice_backward": "Triton splice_backward",
    "_splice_kernel": "Triton splice",
}


def named(kernel: str) -> str:
    """What a launched kernel is called here. Names of C++ are mangled, those of Triton are not."""
    triton = not kernel.startswith("_Z")
    words = [word for word, name in KERNELS.items() if word in kernel and name.startswith("Triton") == triton]
    return KERNELS[max(words, key=len)]


def outcomes(names: list[tuple[str, str]], schedules: int, first: int, jobs: int) -> Iterator[list[Outcome]]:
    """At least so many runs in all, some seeds of one check at a time."""
    each = -(-schedules // len(names))
    parts = [range(start, min(start + 8, first + each)) for start in range(first, first + each, 8)]
    with Pool(jobs) as pool:
        for done in as_completed([pool.submit(*name, part) for part in parts for name in names]):
            yield done.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first", type=int, default=100, help="the first seed of each check; the tests run 0 to 4")
    parser.add_argument("--only", default="", help="only the checks whose name holds this")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    every_check = [("cuda", name) for name in CUDA] + [("triton", name) for name in TRITON]
    names = [name for name in every_check if args.only in " ".join(name)]
    if not names or args.schedules < 1 or args.jobs < 1:
        parser.error(f"--only {args.only!r} leaves {len(names)} checks; --schedules and --jobs must be positive")
    begun, every = time.perf_counter(), []
    for some in outcomes(names, args.schedules, args.first, args.jobs):
        every += some
        for one in some:
            if one.fault:
                print(f"\n{one.implementation} {one.check}, seed {one.seed}: {one.fault}", file=sys.stderr)
        print(f"\r{len(every)} runs, {sum(bool(one.fault) for one in every)} faults", end="", flush=True)
    print()
    seconds = time.perf_counter() - begun
    runs = Counter(kernel for one in every for kernel in {named(kernel) for kernel in one.kernels})
    faults = Counter(kernel for one in every if one.fault for kernel in {named(kernel) for kernel in one.kernels})
    styles = Counter(Schedule(one.seed).style for one in every)
    print(aligned([["kernel", "schedules", "with a fault"], *([k, n, faults[k]] for k, n in sorted(runs.items()))]))
    wrong = [one._asdict() for one in every if one.fault]
    executed = sum(one.executed for one in every)
    print(f"{len(every)} schedules of {len(names)} checks, {len(wrong)} with a fault; {executed} instructions of warps")
    if args.json:
        counted = {"schedules": len(every), "checks": len(names), "instructions": executed, "seconds": round(seconds)}
        write(args.json, {**counted, "jobs": args.jobs, "styles": styles, "kernels": runs, "faults": wrong})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
