"""Time and memory of the nearest-token search beside the lines it replaces, in one run.

    python benchmarks/nearest.py --out benchmarks/results/nearest_cpu.json --plot benchmarks/results/nearest_cpu.png
    python benchmarks/nearest.py --rows 16 1024 --shapes 49408x1024 --baselines naive cached-fp32

Every implementation that is usable on the device, and every baseline of baselines.py, over tables and queries of normal deviates.
Before anything is timed, ours must find the ids of the float64 oracle on up to 256 rows of every case. The baselines round: how
many of their ids are wrong on these rows is shown.

Columns: the median of single calls and its 20% and 80% quantiles; the ratio to cached-fp32; bytes of the table as it is scanned, or
multiplications and additions, by the time; the share of the least time that the card's memory and tensor cores allow (where both
were measured); memory needed beside the prepared table. On CUDA "(graph)" is the same call replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from baselines import BASELINES, Call
from measure import captured, peak_memory, sample, timed
from provenance import write
from torch import Tensor

from pez_fast import TokenTable, info, nearest_token
from pez_fast._shared import settle
from pez_fast.ops import IMPLEMENTATIONS

SAMPLE = 256  # rows compared with the oracle
SHAPES = ["49408x512", "49408x768", "49408x1024", "49408x1280", "50257x1280", "152064x3584"]
ROWS = [8, 16, 64, 128, 1024, 4096, 16384, 65536]
SMALLER = (["49408x512", "49408x1024"], [8, 16, 64, 128, 1024])  # what a CPU does in some ten minutes
FLOORS = {"NVIDIA H200": (4.3e12, 790e12)}  # bytes and 16-bit operations a second, measured: a copy, a large product
FEW = 184  # rows up to which reading the table takes longer than multiplying, on a GPU
REFERENCE = "cached-fp32"


class Setting:
    """One table and as many queries as the largest case has; the same in every process."""

    def __init__(self, shape: str, rows: int, device: str) -> None:
        self.vocabulary, self.d = (int(n) for n in shape.split("x"))
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
        """How many ids (rows,) are not the oracle's, of up to SAMPLE."""
        at = sample(rows, SAMPLE, self.device)
        if rows not in self.oracle:
            self.oracle[rows] = settle.exhaustive(self.x[at], self.weight, self.table.ids)
        return int((ids[at].to(self.device) != self.oracle[rows]).sum())

    def scan_bytes(self, name: str) -> int:
        """Bytes of an element of the table in the form in which it is scanned."""
        if name in BASELINES:
            return BASELINES[name].scan_bytes
        return max(self.table.prepared(name), key=Tensor.numel).element_size()


def usable(
    device: str, impls: list[str] | None, baselines: list[str] | None
) -> tuple[list[str], list[str], dict[str, str]]:
    """Implementations, baselines, and what is left out for which reason; an implementation asked for by name must run."""
    ours, theirs, left_out = [], [], {}
    for name, reason in info(device)["implementations"].items():
        if reason is True and (impls is None or name in impls):
            ours.append(name)
        elif reason is not True and impls is not None and name in impls:
            raise SystemExit(f"{name} cannot run here: {reason}")
        elif reason is not True:
            left_out[name] = reason
    for name in BASELINES if baselines is None else baselines:
        why = BASELINES[name].unavailable(device)
        if why is None:
            theirs.append(name)
        else:
            left_out[name] = why
    return ours, theirs, left_out


def check_parity(setting: Setting, impls: list[str], rows: list[int]) -> None:
    for name in impls:
        for n in rows:
            ids = setting.call(name, n)()
            assert ids is not None
            wrong = setting.wrong(ids, n)
            if wrong:
                raise SystemExit(
                    f"{name} finds {wrong} wrong ids for {n} rows and {setting.vocabulary}x{setting.d}; nothing was timed"
                )


def floor_ms(setting: Setting, n: int) -> float | None:
    """The least time for a table of 16-bit elements."""
    for card, (bytes_per_second, operations) in FLOORS.items():
        if setting.device == "cuda" and torch.cuda.get_device_name().startswith(card):
            elements = setting.vocabulary * setting.d
            return 1e3 * max(2 * elements / bytes_per_second, 2 * n * elements / operations)
    return None


def measured(setting: Setting, name: str, n: int, seconds: float, memory: bool) -> list[dict[str, Any]]:
    """One case, and on CUDA ours once more as a graph."""
    call = setting.call(name, n)
    ids = call()
    wrong = None if ids is None else setting.wrong(ids, n)
    peak = peak_memory_of(setting, name, n, call) if memory else None
    calls: dict[str, Any] = {name: call}
    failed: str | None = None
    if setting.device == "cuda" and name in IMPLEMENTATIONS and IMPLEMENTATIONS[name].capturable:
        try:
            calls[f"{name} (graph)"], replayed = captured(call)
            calls[f"{name} (graph)"]()
            failed = None if ids is not None and torch.equal(replayed, ids) else "replay gave other ids"
        except RuntimeError as e:
            failed = str(e).splitlines()[0]
            calls.pop(f"{name} (graph)", None)
    entries = []
    for label, run in calls.items():
        time_ = timed(run, setting.device, seconds)
        elements, floor = setting.vocabulary * setting.d, floor_ms(setting, n)
        entries.append(
            {
                "name": label,
                "ours": name not in BASELINES,
                "rows": n,
                "vocabulary": setting.vocabulary,
                "d": setting.d,
                "ms": time_.ms,
                "q20": time_.q20,
                "q80": time_.q80,
                "runs": time_.runs,
                "gb_per_s": elements * setting.scan_bytes(name) / time_.ms / 1e6,
                "tflop_per_s": 2 * n * elements / time_.ms / 1e9,
                "floor_ms": floor,
                "share_of_floor": floor and floor / time_.ms,
                "peak_mib": peak if peak is None else peak / 2**20,
                "wrong_ids": wrong,
                "sampled_rows": min(n, SAMPLE),
            }
        )
    if failed:
        entries[0]["graph"] = failed
    return entries


def peak_memory_of(setting: Setting, name: str, n: int, call: Call) -> int | None:
    """On a CPU in a process of its own, where nothing that another case left behind can be used again."""
    if setting.device == "cuda":
        return peak_memory(call, "cuda")
    command = [
        sys.executable,
        __file__,
        "--peak-memory-of",
        name,
        "--rows",
        str(n),
        "--shapes",
        f"{setting.vocabulary}x{setting.d}",
    ]
    done = subprocess.run(
        [*command, "--threads", str(torch.get_num_threads())], capture_output=True, text=True, check=True
    )
    answer = done.stdout.split()[-1]
    return None if answer == "None" else int(answer)


def print_peak_memory(name: str, shape: str, rows: int) -> None:
    setting = Setting(shape, rows, "cpu")
    # Libraries set themselves up at the first call; what torch.compile needs to compile for these shapes is no memory of the call.
    setting.call(name, rows if name.startswith("compiled") else 1)()
    print(peak_memory(setting.call(name, rows), "cpu"))


def report(entries: list[dict[str, Any]]) -> None:
    """The cases of one shape and number of rows, with their ratios filled in."""
    base = next((e["ms"] for e in entries if e["name"] == REFERENCE), None)
    for e in entries:
        e["ratio"] = base and base / e["ms"]
        rate = f"{e['gb_per_s']:8.1f} GB/s   " if e["rows"] <= FEW else f"{e['tflop_per_s']:8.3f} TFLOP/s"
        wrong = "no ids" if e["wrong_ids"] is None else f"{e['wrong_ids']} of {e['sampled_rows']}"
        share = e["share_of_floor"] and 100 * e["share_of_floor"]
        print(
            f"  {e['rows']:6}  {e['name']:18}{e['ms']:11.3f}  {e['q20']:10.3f} {e['q80']:10.3f}  {cell(e['ratio'], '7.2f')}  {rate}"
            f"  {cell(share, '6.0f')}  {cell(e['peak_mib'], '9.1f')}  {wrong:>10}",
            flush=True,
        )


def cell(value: float | None, spec: str) -> str:
    return format(value, spec) if value is not None else "–".rjust(int(spec.split(".")[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", metavar="VxD")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--impls", nargs="*", choices=IMPLEMENTATIONS, help="default: every usable one")
    parser.add_argument(
        "--instructions", help="what the C++ extension may use of the CPU: avx512vnni, avxvnni, avx2 or portable"
    )
    parser.add_argument(
        "--baselines", nargs="*", choices=BASELINES, metavar="NAME", help=f"of {', '.join(BASELINES)}; default: all"
    )
    parser.add_argument("--full", action="store_true", help="all shapes and rows on a CPU too")
    parser.add_argument("--seconds", type=float, help="for the repetitions of a case; default 0.5, on CUDA 0.2")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument(
        "--memory-rows", type=int, nargs="*", help="rows whose memory is measured; on a CPU 16 and 1024 by default"
    )
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.instructions:
        from pez_fast import _C

        _C.use(args.instructions)
    begun = time.monotonic()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_memory_of:
        return print_peak_memory(args.peak_memory_of, args.shapes[0], args.rows[0])
    smaller = args.device == "cpu" and not args.full
    shapes, rows = args.shapes or (SMALLER[0] if smaller else SHAPES), args.rows or (SMALLER[1] if smaller else ROWS)
    seconds = args.seconds or (0.5 if args.device == "cpu" else 0.2)
    ours, theirs, left_out = usable(args.device, args.impls, args.baselines)
    results: list[dict[str, Any]] = []

    def save(final: bool) -> None:
        if args.out:
            whose = {name: BASELINES[name].whose for name in theirs}
            found = {"device": info(args.device)["device"], "cases": results, "left_out": left_out, "baselines": whose}
            write(args.out, found, final)

    for shape in shapes:
        if time.monotonic() - begun > args.budget:
            left_out[shape] = f"the budget of {args.budget:.0f} s was spent"
            continue
        setting = Setting(shape, max(rows), args.device)
        check_parity(setting, ours, rows)
        parity = f": ids of {', '.join(ours)} equal the oracle's" if ours else ""
        print(f"\n{shape} on {info(args.device)['device']}{parity}")
        print(
            f"  {'rows':>6}  {'':18}{'ms':>11}  {'20%':>10} {'80%':>10}  {'ratio':>7}  {'rate':16}  {'floor%':>6}  {'MiB':>9}  {'wrong':>10}"
        )
        for n in rows:
            entries = []
            for name in [*theirs, *ours]:
                most = BASELINES[name].most_rows if name in BASELINES else None
                if most and n > most:
                    left_out[f"{name}, {n} rows"] = f"not beyond {most} rows"
                elif time.monotonic() - begun > args.budget:
                    left_out[f"{name}, {n} rows, {shape}"] = f"the budget of {args.budget:.0f} s was spent"
                else:
                    try:
                        memory = n in (
                            args.memory_rows
                            if args.memory_rows is not None
                            else rows
                            if args.device == "cuda"
                            else (16, 1024)
                        )
                        entries += measured(setting, name, n, seconds, memory)
                    except Exception as e:
                        if name not in BASELINES:
                            raise
                        left_out[f"{name}, {n} rows, {shape}"] = (
                            f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
                        )
            report(entries)
            results += entries
            save(final=False)
    print("\n".join(f"left out: {name}: {reason}" for name, reason in left_out.items()))
    save(final=True)
    if args.plot:
        from plot import plot

        plot(results, args.plot, info(args.device)["device"])


if __name__ == "__main__":
    main()
