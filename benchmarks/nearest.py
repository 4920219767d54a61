"""Measures time and memory of the nearest-token search beside the lines it replaces, in one run.

    python benchmarks/nearest.py --out benchmarks/results/nearest_cpu.json --plot benchmarks/results/nearest_cpu.png
    python benchmarks/nearest.py --rows 16 1024 --shapes 49408x1024 --baselines naive cached-fp32

It runs every implementation that the device can run, and every baseline of baselines.py. Tables and queries are normal
deviates. Nothing is timed before every implementation has found the ids of the float64 oracle, on up to 256 rows of
every case. The baselines round; the table shows how many of their ids are wrong on these rows.

The columns are: the median time of single calls, and its 20% and 80% quantiles; the time of cached-fp32 divided by this
time; the rate, which is the bytes of the table as it is scanned, or the multiplications and additions, divided by the
time; the least time that the card's memory and tensor cores allow, as a share of this time (for cards where both were
measured); the memory that a call needs beside the prepared table. "(graph)" is the call replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from baselines import BASELINES, Call, usable_baselines
from measure import captured, peak_memory, sample, timed
from provenance import write
from torch import Tensor

from pez_fast import TokenTable, info, nearest_token
from pez_fast._shared import resolve_ties
from pez_fast.ops import IMPLEMENTATIONS

SAMPLE = 256  # so many rows of a case are compared with the oracle
SHAPES = ["49408x512", "49408x768", "49408x1024", "49408x1280", "50257x1280", "152064x3584"]
ROWS = [8, 16, 64, 128, 1024, 4096, 16384, 65536]
SMALLER = (["49408x512", "49408x1024"], [8, 16, 64, 128, 1024])  # a CPU measures these in about ten minutes
FLOORS = {"NVIDIA H200": (4.3e12, 790e12)}  # bytes a second of a copy, 16-bit operations a second of a large product
FEW = 184  # up to so many rows, a GPU takes longer to read the table than to multiply
REFERENCE = "cached-fp32"


class Setting:
    """Holds one table and the queries of the largest case; every process draws the same ones."""

    def __init__(self, shape: str, rows: int, device: str) -> None:
        self.shape, (self.vocabulary, self.d) = shape, (int(n) for n in shape.split("x"))
        generator = torch.Generator(device).manual_seed(0)
        self.device = device
        self.weight = torch.randn(self.vocabulary, self.d, generator=generator, device=device).mul_(0.02)
        self.x = torch.randn(rows, self.d, generator=generator, device=device)
        self.oracle: dict[int, Tensor] = {}

    @cached_property
    def table(self) -> TokenTable:
        return TokenTable(self.weight)

    def call(self, name: str, rows: int) -> Call:
        x = self.x[:rows]
        if name in BASELINES:
            return BASELINES[name].build(self.weight, x)
        self.table.prepared(name)
        return lambda: nearest_token(x, self.table, name)[0]

    def wrong(self, ids: Tensor, rows: int) -> int:
        """Returns how many of ids (rows,) differ from the oracle's; it compares up to SAMPLE rows."""
        at = sample(rows, SAMPLE, self.device)
        if rows not in self.oracle:
            self.oracle[rows] = resolve_ties.exhaustive(self.x[at], self.weight, self.table.ids)
        return int((ids[at].to(self.device) != self.oracle[rows]).sum())

    def scan_bytes(self, name: str) -> int:
        """Returns the bytes of one element of the table, in the form in which the search scans it."""
        if name in BASELINES:
            return BASELINES[name].scan_bytes
        return max(self.table.prepared(name), key=Tensor.numel).element_size()


def check_parity(setting: Setting, impls: list[str], rows: list[int]) -> None:
    for name, n in product(impls, rows):
        ids = setting.call(name, n)()
        assert ids is not None
        if wrong := setting.wrong(ids, n):
            raise SystemExit(f"{name} finds {wrong} wrong ids for {n} rows and {setting.shape}; nothing was timed")


def floor_ms(setting: Setting, n: int) -> float | None:
    """Returns the least time that this card allows for a table of 16-bit elements."""
    for card, (bytes_per_second, operations) in FLOORS.items():
        if setting.device == "cuda" and torch.cuda.get_device_name().startswith(card):
            elements = setting.vocabulary * setting.d
            return 1e3 * max(2 * elements / bytes_per_second, 2 * n * elements / operations)
    return None


def measured(setting: Setting, name: str, n: int, seconds: float, memory: bool) -> list[dict[str, Any]]:
    """Measures one case; on CUDA it measures an implementation of ours once more as a graph."""
    call = setting.call(name, n)
    ids = call()
    elements, floor = setting.vocabulary * setting.d, floor_ms(setting, n)
    case = {"ours": name not in BASELINES, "rows": n, "vocabulary": setting.vocabulary, "d": setting.d}
    wrong = None if ids is None else setting.wrong(ids, n)
    peak = peak_memory_of(setting, name, n, call) if memory else None
    calls: dict[str, Any] = {name: call}
    failed: str | None = None
    if setting.device == "cuda" and name in IMPLEMENTATIONS and IMPLEMENTATIONS[name].capturable:
        replay, failed = graph_of(call, ids)
        calls |= {f"{name} (graph)": replay} if replay else {}
    entries = []
    for label, run in calls.items():
        time_ = timed(run, setting.device, seconds)
        rates = {
            "gb_per_s": elements * setting.scan_bytes(name) / time_.ms / 1e6,
            "tflop_per_s": 2 * n * elements / time_.ms / 1e9,
            "floor_ms": floor,
            "share_of_floor": floor and floor / time_.ms,
            "peak_mib": peak if peak is None else peak / 2**20,
            "wrong_ids": wrong,
            "sampled_rows": min(n, SAMPLE),
        }
        entries.append({"name": label, **case, **time_._asdict(), **rates})
    if failed:
        entries[0]["graph"] = failed
    return entries


def graph_of(call: Call, ids: Tensor | None) -> tuple[Call | None, str | None]:
    """Returns what replays the call as a CUDA graph, and what is wrong with the graph; either may be None."""
    try:
        replay, replayed = captured(call)
        replay()
        return replay, None if ids is not None and torch.equal(replayed, ids) else "replay gave other ids"
    except RuntimeError as e:
        return None, str(e).splitlines()[0]


def peak_memory_of(setting: Setting, name: str, n: int, call: Call) -> int | None:
    """Returns the memory that a call needs, in bytes.

    On a CPU it runs in a process of its own, which cannot reuse memory that another case has freed."""
    if setting.device == "cuda":
        return peak_memory(call, "cuda")
    options = ["--rows", str(n), "--shapes", setting.shape, "--threads", str(torch.get_num_threads())]
    command = [sys.executable, __file__, "--peak-memory-of", name, *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return None if answer == "None" else int(answer)


def print_peak_memory(name: str, shape: str, rows: int) -> None:
    setting = Setting(shape, rows, "cpu")
    # The first call sets libraries up and lets torch.compile compile for these shapes; neither is memory of the call.
    setting.call(name, rows if name.startswith("compiled") else 1)()
    print(peak_memory(setting.call(name, rows), "cpu"))


def report(entries: list[dict[str, Any]]) -> None:
    """Fills in the ratios of the cases of one shape and number of rows, and prints the cases."""
    base = next((e["ms"] for e in entries if e["name"] == REFERENCE), None)
    for e in entries:
        e["ratio"] = base and base / e["ms"]
        rate = f"{e['gb_per_s']:8.1f} GB/s   " if e["rows"] <= FEW else f"{e['tflop_per_s']:8.3f} TFLOP/s"
        wrong = "no ids" if e["wrong_ids"] is None else f"{e['wrong_ids']} of {e['sampled_rows']}"
        share = e["share_of_floor"] and 100 * e["share_of_floor"]
        print(
            f"  {e['rows']:6}  {e['name']:18}{e['ms']:11.3f}  {e['q20']:10.3f} {e['q80']:10.3f}"
            f"  {cell(e['ratio'], '7.2f')}  {rate}  {cell(share, '6.0f')}  {cell(e['peak_mib'], '9.1f')}  {wrong:>10}",
            flush=True,
        )


def cell(value: float | None, spec: str) -> str:
    return format(value, spec) if value is not None else "–".rjust(int(spec.split(".")[0]))


class Comparison:
    """Holds what one call of this program measures, what it has found, and what it has left out for which reason."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.begun = args, time.monotonic()
        smaller = args.device == "cpu" and not args.full
        self.shapes = args.shapes or (SMALLER[0] if smaller else SHAPES)
        self.rows = args.rows or (SMALLER[1] if smaller else ROWS)
        self.seconds = args.seconds or (0.5 if args.device == "cpu" else 0.2)
        by_default = self.rows if args.device == "cuda" else [16, 1024]
        self.memory_rows = by_default if args.memory_rows is None else args.memory_rows
        self.device_name = info(args.device)["device"]
        self.left_out: dict[str, str] = {}
        self.ours = self.usable_implementations()
        self.theirs, without = usable_baselines(args.device, args.baselines)
        self.left_out |= without
        self.results: list[dict[str, Any]] = []

    def usable_implementations(self) -> list[str]:
        """Notes why each of the others is left out; an implementation that --impls names must run."""
        names = []
        for name, reason in info(self.args.device)["implementations"].items():
            if reason is not True and name in (self.args.impls or ()):
                raise SystemExit(f"{name} cannot run here: {reason}")
            if reason is not True:
                self.left_out[name] = reason
            elif self.args.impls is None or name in self.args.impls:
                names.append(name)
        return names

    def spent(self, case: str) -> bool:
        """Says whether the budget is spent; if so, it notes the case as left out."""
        if time.monotonic() - self.begun <= self.args.budget:
            return False
        self.left_out[case] = f"the budget of {self.args.budget:.0f} s was spent"
        return True

    def compare(self, shape: str) -> None:
        """Checks the ids for one shape, then measures and prints every case; it saves after each number of rows."""
        setting = Setting(shape, max(self.rows), self.args.device)
        check_parity(setting, self.ours, self.rows)
        parity = f": ids of {', '.join(self.ours)} equal the oracle's" if self.ours else ""
        print(f"\n{shape} on {self.device_name}{parity}")
        print(
            f"  {'rows':>6}  {'':18}{'ms':>11}  {'20%':>10} {'80%':>10}"
            f"  {'ratio':>7}  {'rate':16}  {'floor%':>6}  {'MiB':>9}  {'wrong':>10}"
        )
        for n in self.rows:
            entries = [entry for name in [*self.theirs, *self.ours] for entry in self.measure(setting, name, n)]
            report(entries)
            self.results += entries
            self.save(final=False)

    def measure(self, setting: Setting, name: str, n: int) -> list[dict[str, Any]]:
        """Measures one case, or notes why it is left out; an error of an implementation of ours is raised."""
        case = f"{name}, {n} rows, {setting.shape}"
        most = BASELINES[name].most_rows if name in BASELINES else None
        if most and n > most:
            self.left_out[f"{name}, {n} rows"] = f"not beyond {most} rows"
            return []
        if self.spent(case):
            return []
        try:
            return measured(setting, name, n, self.seconds, n in self.memory_rows)
        except Exception as e:
            if name not in BASELINES:
                raise
            self.left_out[case] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
            return []

    def save(self, final: bool) -> None:
        if self.args.out:
            whose = {name: BASELINES[name].whose for name in self.theirs}
            found = {"device": self.device_name, "cases": self.results, "left_out": self.left_out, "baselines": whose}
            write(self.args.out, found, final)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--shapes", nargs="+", metavar="VxD")
    add("--rows", type=int, nargs="+")
    add("--impls", nargs="*", choices=IMPLEMENTATIONS, help="default: every usable one")
    add("--instructions", help="what the C++ extension may use of the CPU: avx512vnni, avxvnni, avx2 or portable")
    add("--baselines", nargs="*", choices=BASELINES, metavar="NAME", help=f"of {', '.join(BASELINES)}; default: all")
    add("--full", action="store_true", help="all shapes and rows on a CPU too")
    add("--seconds", type=float, help="for the repetitions of a case; default 0.5, on CUDA 0.2")
    add("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    add("--memory-rows", type=int, nargs="*", help="rows whose memory is measured; on a CPU 16 and 1024 by default")
    add("--threads", type=int, help="of torch on a CPU")
    add("--out", type=Path)
    add("--plot", type=Path)
    add("--peak-memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.instructions:
        from pez_fast import _C

        _C.use(args.instructions)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_memory_of:
        return print_peak_memory(args.peak_memory_of, args.shapes[0], args.rows[0])
    comparison = Comparison(args)
    for shape in comparison.shapes:
        if not comparison.spent(shape):
            comparison.compare(shape)
    print("\n".join(f"left out: {name}: {reason}" for name, reason in comparison.left_out.items()))
    comparison.save(final=True)
    if args.plot:
        from plot import plot

        plot(comparison.results, args.plot, comparison.device_name)


if __name__ == "__main__":
    main()
