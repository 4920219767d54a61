"""Predicts the time of a search on an H200 from its machine code, for comparison with a first measurement.

    python benchmarks/time_model.py --json benchmarks/results/time_model.json

ASSUMED holds every assumption; nothing here was measured on our kernels. A search has three parts: the query kernel,
the scan for its number of rows, the decision. Kernels after the first are launched early (programmatic dependent
launch), so each costs its own latency but no gap.
"""

from __future__ import annotations

import argparse
import json
from math import ceil
from pathlib import Path

from provenance import write
from tables import aligned

RESULTS = Path(__file__).parent / "results"
TARGETS = {16: 0.029, 1024: 0.130, 4096: 0.55, 65536: 9.0}  # rows: milliseconds for 49,408 tokens of width 1024
ASSUMED = {
    "multiprocessors": 132,
    "bytes_per_us": 4.3e6,  # copies were measured at 4.3 TB/s on such a card
    "tensor_flops_per_us": 790e6,  # large bf16 products were measured at 790 TFLOP/s
    "clock_mhz": 1600.0,  # under that load
    "products_per_clock": 2048.0,  # fp16 multiply-adds of a multiprocessor by wgmma
    "launch_us": 1.5,  # from the graph's node to a kernel's first instruction
    "trip_us": 0.7,  # a load from DRAM or a far part of the L2 under little load
    "l1_trip_us": 0.05,
    "issue_clocks": 2.0,  # of an FMNMX or LOP3 of a warp: half the rate of a multiply-add
    "first_key_us": 0.5,  # barriers, tensor maps and the first stage of a block's first item
    "rows_decided_at_once": 12,  # of a multiprocessor: 168 registers, four warps a block
    "rows_rounded_at_once": 28,  # of a multiprocessor: 72 registers
}
ROWS_AT_ONCE = 16384  # pez_fast._cuda.nearest.ROWS
# Rounded and keys; the group's fp16 rows and ids; norm and the row; half each for the tile's key and the end.
DECISION_TRIPS = 4
GROUPS_LOOKED_AT, TOKENS_COMPARED = 1.14, 1.14  # of a normal random row at width 1024


def epilogue_per_tile(kernel: str = "nearest_scan_sm90", arch: str = "sm_90a") -> int:
    """Instructions of a warp for its part of a tile, as cuda_report.py counted them."""
    kernels = json.loads((RESULTS / "cuda_build.json").read_text())["results"]["kernels"]
    return next(k["epilogue"] for k in kernels if k["name"] == kernel and k["arch"] == arch)


def query_us(rows: int, width: int) -> float:
    a = ASSUMED
    waves = ceil(rows / a["multiprocessors"] / a["rows_rounded_at_once"])
    return max(waves * 2 * a["trip_us"], rows * width * 6 / a["bytes_per_us"])  # float32 read, fp16 written


def few_us(vocabulary: int, width: int) -> float:
    """Reading the table once; its first tiles load while the queries are rounded."""
    return vocabulary * width * 2 / ASSUMED["bytes_per_us"] + 2 * ASSUMED["trip_us"]


def many_us(rows: int, vocabulary: int, width: int) -> float:
    """Items of 128 rows by 256 tokens, one after the other on each multiprocessor.

    The two warp groups reach the end of an item half a stage apart (512 clocks), so that one multiplies while the other
    begins its epilogue. The rest of the epilogue leaves the tensor cores idle.
    """
    a = ASSUMED
    row_tiles, token_tiles = ceil(rows / 128), ceil(vocabulary / 256)
    shared_rows = row_tiles % 2 == 1 and row_tiles <= 7
    pairs = row_tiles * ceil(token_tiles / 2) if shared_rows else ceil(row_tiles / 2) * token_tiles
    items = ceil(pairs / (a["multiprocessors"] // 2))
    stage = 128 * 256 * 64 / a["products_per_clock"]
    idle = max(0.0, a["issue_clocks"] * epilogue_per_tile() - stage / 2) + 100  # 100: the first products after it
    slowed = (
        a["products_per_clock"] * 2 * a["multiprocessors"] * a["clock_mhz"] / a["tensor_flops_per_us"]
    )  # nominal over measured rate
    clocks = items * (ceil(width / 64) * stage * max(1.0, slowed) + idle)
    reading = (vocabulary * width * 2 + rows * width * 2 * token_tiles / 132) / a["bytes_per_us"]
    return max(clocks / a["clock_mhz"], reading) + a["first_key_us"]


def decision_us(rows: int, vocabulary: int, width: int) -> float:
    a = ASSUMED
    waves = ceil(rows / a["multiprocessors"] / a["rows_decided_at_once"])
    bytes_of_row = (
        vocabulary / 128 * 8 + width * 2 + GROUPS_LOOKED_AT * 4 * width * 2 + TOKENS_COMPARED * width * 4 + width * 4
    )
    return max(
        waves * (DECISION_TRIPS * a["trip_us"] + vocabulary / 128 / 32 / 16 * a["l1_trip_us"]),
        rows * bytes_of_row / a["bytes_per_us"],
    )


def parts_us(rows: int, vocabulary: int = 49_408, width: int = 1024) -> dict[str, float]:
    """Microseconds of each kernel and of all of them, for rows that fit into one chunk."""
    few = rows <= 32
    scan = few_us(vocabulary, width) if few else many_us(rows, vocabulary, width)
    parts = {
        "launch": ASSUMED["launch_us"],
        "query": query_us(rows, width),
        "scan": scan,
        "decision": decision_us(rows, vocabulary, width),
    }
    if few:
        parts["query"] = 0.0  # hidden behind the table's first tiles
    return parts | {"all": sum(parts.values())}


def predicted_ms(rows: int, vocabulary: int = 49_408, width: int = 1024, impl: str = "cuda") -> float | None:
    """Milliseconds of a search on an H200; None for an implementation that is not modelled."""
    if impl != "cuda":
        return None
    whole, rest = divmod(rows, ROWS_AT_ONCE)
    sizes = [ROWS_AT_ONCE] * whole + ([rest] if rest else [])
    return sum(parts_us(size, vocabulary, width)["all"] for size in sizes) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 1024, 4096, 16384, 65536])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 768, 1024, 1280])
    parser.add_argument("--vocabulary", type=int, default=49_408)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = []
    for width in args.widths:
        for rows in args.rows:
            case: dict[str, object] = {"rows": rows, "vocabulary": args.vocabulary, "width": width}
            case["ms"] = round(predicted_ms(rows, args.vocabulary, width) or 0.0, 4)
            case["target_ms"] = TARGETS.get(rows) if (args.vocabulary, width) == (49_408, 1024) else None
            case["parts_us"] = {
                name: round(us, 1) for name, us in parts_us(min(rows, ROWS_AT_ONCE), args.vocabulary, width).items()
            }
            cases.append(case)
    lines = [[c["width"], c["rows"], c["ms"], c["target_ms"] or "", *c["parts_us"].values()] for c in cases]
    print(
        aligned(
            [["width", "rows", "ms", "target", "launch", "query", "scan", "decision", "all (us of a part)"], *lines]
        )
    )
    if args.json:
        write(args.json, {"assumed": ASSUMED, "epilogue_per_tile": epilogue_per_tile(), "cases": cases})


if __name__ == "__main__":
    main()
