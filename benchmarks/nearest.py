"""Time of the nearest-token search beside the lines it replaces, in one run.

    python benchmarks/nearest.py --out benchmarks/results/nearest_cpu.json

Baselines: "naive lines", which normalise queries and table at every call and write out the (N, V) scores, and "cached table",
which normalises the table once. Ids are checked first: ours must equal the float64 oracle on a sample of rows; for the
baselines, which work in float32, the number of rows that differ from ours is shown.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from provenance import now, write

from pez_fast import TokenTable, info, nearest_token, reference

SAMPLE = 8  # rows compared with the oracle


def timed(run, seconds: float = 1.5) -> tuple[float, float, float]:
    """Median and 20% and 80% quantiles in milliseconds."""
    run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        begun = now()
        run()
        times.append(now() - begun)
    quantiles = statistics.quantiles(times, n=5)
    return statistics.median(times) * 1e3, quantiles[0] * 1e3, quantiles[3] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=49408)
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 128, 1024])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    results = []
    for d in args.dims:
        generator = torch.Generator().manual_seed(0)
        weight = (torch.randn(args.vocabulary, d, generator=generator) * 0.02).to(args.device)
        begun = now()
        table = TokenTable(weight)
        prepared = now() - begun
        unit = F.normalize(weight, dim=-1)
        print(f"V = {args.vocabulary}, d = {d}; prepared in {prepared:.2f} s")
        for n in args.rows:
            x = torch.randn(n, d, generator=generator).to(args.device)
            ways = {
                "naive lines": lambda x=x, weight=weight: reference.nn_project(x, weight)[1],
                "cached table": lambda x=x, unit=unit: (F.normalize(x, dim=-1) @ unit.T).argmax(-1),
            }
            for impl, usable in info(args.device)["implementations"].items():
                if usable is True:
                    ways[impl] = lambda x=x, table=table, impl=impl: nearest_token(x, table, impl)[0]
            exact = nearest_token(x, table)[0]
            oracle = reference.nearest_token(x[:SAMPLE].cpu(), weight.cpu())[0]
            assert torch.equal(exact[:SAMPLE].cpu(), oracle), "ids differ from the oracle"
            naive = None
            for name, run in ways.items():
                wrong = int((run() != exact).sum())
                median, low, high = timed(run)
                naive = naive or median
                results.append({"name": name, "rows": n, "vocabulary": args.vocabulary, "d": d, "ms": median, "q20": low, "q80": high,
                                "ratio": naive / median, "gflops": 2e-6 * n * args.vocabulary * d / median, "wrong_ids": wrong})  # fmt: skip
                print(f"  N = {n:5}  {name:14} {median:9.2f} ms ({low:.2f} to {high:.2f})  {naive / median:5.1f} x  {wrong} ids differ")
    if args.out:
        write(args.out, results)


if __name__ == "__main__":
    main()
