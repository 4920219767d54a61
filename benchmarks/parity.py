"""Compares the ids of an implementation with the oracle's, over a million queries in every kind of table.

    python benchmarks/parity.py --impl cpu --rows 1000000

The oracle searches the whole table in float64 and decides near ties exactly (`pez_fast._shared.resolve_ties`). Some
implementations share that last step. So the program also compares the oracle, on some rows of each kind, with
`pez_fast.reference`, which decides by fractions. A similarity must be within 1e-6 of the float64 cosine.

Double-double cannot tell the closest cosines apart, and on GPUs such cosines count as equal. A row is "level" where the
implementation finds another token than the oracle, but one whose cosine counts as equal. The program exits with 1 if an
id differs or a similarity is further off.
"""

from __future__ import annotations

import argparse
import time
import zlib
from decimal import Context, Decimal, localcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS, Case
from provenance import write
from torch import Generator, Tensor

from pez_fast import TokenTable, ops, reference
from pez_fast._shared import arithmetic, resolve_ties

SIMILARITY = 1e-6
REFERENCE_ROWS, REFERENCE_ELEMENTS = 8, 20_000  # fractions decide so many rows of a kind, in tables up to this size
COUNTS = ("certified", "rescored", "rescanned")
# The host runs the CUDA kernels; it adds as the tensor cores of such a card do.
SIMULATED = {f"simulated-{card}": card for card in ("ampere", "ada", "hopper")}
EXACT = ("torch", "cpu")  # these decide all ties exactly; the others end with double-double


def oracle(x: Tensor, table: TokenTable) -> tuple[Tensor, Tensor]:
    """Returns ids (N,) and their cosines (N,) in float64; a zero row of x (N, d) has the lowest allowed id."""
    ids = torch.full((len(x),), int(table.ids[0]), device=x.device)
    cosine = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    directed = (x != 0).any(-1)
    if directed.any():
        ids[directed] = resolve_ties.exhaustive(x[directed], table.weight, table.ids)
        cosine[directed] = resolve_ties.float64_cosine(x[directed], table.weight[ids[directed]])
    return ids, cosine


def differences(case: Case, impl: str, device: str, counts: Tensor) -> tuple[list[dict[str, Any]], int, float]:
    """Returns the rows whose id is wrong, the number of level rows, and the largest error of a similarity."""
    x = case.x.to(device)
    table = TokenTable(case.weight.to(device), case.banned)
    search = import_module(f"{ops.IMPLEMENTATIONS[impl].package}.nearest").nearest
    if impl in SIMULATED:
        search = partial(search, card=SIMULATED[impl])
    ids, similarity = search(x, table.weight, table.ids, table.prepared(impl), counts)
    expected, cosine = oracle(x, table)
    agree, wrong, level = ids == expected, [], 0
    for n in (~agree).nonzero()[:, 0].tolist():
        if impl not in EXACT and _level(case, n, int(ids[n]), int(expected[n])):
            level += 1
            continue
        wrong.append(
            {
                "row": n,
                "found": int(ids[n]),
                "expected": int(expected[n]),
                "V": len(table),
                "d": table.dim,
                "dtypes": [str(t.dtype).removeprefix("torch.") for t in (x, table.weight)],
            }
        )
    error = (similarity.double() - cosine)[agree].abs()
    return wrong, level, float(error.nan_to_num(torch.inf).max()) if len(error) else 0.0


def _level(case: Case, row: int, found: int, expected: int) -> bool:
    """Says whether the cosines of the two tokens are too close for double-double to tell them apart."""
    if found < 0:
        return False
    with localcontext(Context(prec=1500)):
        q, e, f = (
            [Decimal(v) for v in t.double().tolist()] for t in (case.x[row], case.weight[expected], case.weight[found])
        )
        best, other = (_dot(q, t) / (_dot(q, q) * _dot(t, t)).sqrt() for t in (e, f))
        return best - other <= Decimal(3 * arithmetic.error(len(q)))


def _dot(a: list[Decimal], b: list[Decimal]) -> Decimal:
    return sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))


def reference_differences(case: Case) -> int:
    """Returns on how many of the first REFERENCE_ROWS rows the oracle and the reference differ."""
    x = case.x[:REFERENCE_ROWS]
    banned = () if case.banned is None else case.banned.tolist()
    expected, _ = reference.nearest_token(x, case.weight, banned)
    return int((oracle(x, TokenTable(case.weight, case.banned))[0] != expected).sum())


def sweep(name: str, rows: int, impl: str, device: str, seed: int) -> dict[str, Any]:
    """Draws tables of one kind until so many rows have been searched for, and returns the counts."""
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    entry: dict[str, Any] = {"kind": name, "largest_error": 0.0}
    entry |= dict.fromkeys(("rows", "tables", "differ", "level", "oracle_rows", "oracle_differs"), 0)
    examples: list[dict[str, Any]] = []
    begun = time.perf_counter()
    while entry["rows"] < rows:
        generator = Generator().manual_seed(zlib.crc32(f"{name} {seed} {entry['tables']}".encode()))
        case = KINDS[name].build(generator, rows - entry["rows"])
        if entry["oracle_rows"] < REFERENCE_ROWS and case.weight.numel() <= REFERENCE_ELEMENTS:
            entry["oracle_rows"] += min(REFERENCE_ROWS, len(case.x))
            entry["oracle_differs"] += reference_differences(case)
        wrong, level, error = differences(case, impl, device, counts)
        examples += [{"table": entry["tables"], **w} for w in wrong[:3]]
        entry["differ"] += len(wrong)
        entry["level"] += level
        entry["largest_error"] = max(entry["largest_error"], error)
        entry["rows"] += len(case.x)
        entry["tables"] += 1
    entry |= dict(zip(COUNTS, counts.tolist(), strict=True), seconds=round(time.perf_counter() - begun, 1))
    return entry | ({"examples": examples[:5]} if examples else {})


class Report:
    """Holds the entries of the kinds that were swept; prints them and writes them to a file."""

    def __init__(self, args: argparse.Namespace, impl: str) -> None:
        self.out = args.out
        self.about = {"impl": impl, "device": args.device, "seed": args.seed}
        self.entries: list[dict[str, Any]] = []

    def total(self) -> dict[str, Any]:
        keys = ("rows", "tables", "differ", "level", *COUNTS, "oracle_rows", "oracle_differs", "seconds")
        total: dict[str, Any] = {key: sum(e[key] for e in self.entries) for key in keys}
        return total | {"kind": "all", "largest_error": max(e["largest_error"] for e in self.entries)}

    def save(self, final: bool) -> None:
        if self.out:
            found = self.about | {"complete": final, "kinds": self.entries, "total": self.total()}
            write(self.out, found, final)

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        print_entry(entry)
        self.save(final=False)

    def finish(self) -> dict[str, Any]:
        """Saves the file, prints the total and the rows that differ, and returns the total."""
        self.save(final=True)
        total = self.total()
        print_entry(total)
        print(f"the oracle and fractions differ on {total['oracle_differs']} of {total['oracle_rows']} rows")
        for entry in self.entries:
            for example in entry.get("examples", []):
                print(f"{entry['kind']}: {example}")
        return total


def print_header(impl: str, device: str, seed: int) -> None:
    print(f"impl {impl} on {device}, seed {seed}")
    counts = "".join(f"{c:>11}" for c in COUNTS)
    print(f"{'':28}{'rows':>9}{'tables':>8}{'differ':>8}{'level':>8}{'error':>10}{counts}{'seconds':>9}")


def print_entry(e: dict[str, Any]) -> None:
    counts = "".join(f"{e[c]:11}" for c in COUNTS)
    found = f"{e['rows']:9}{e['tables']:8}{e['differ']:8}{e['level']:8}{e['largest_error']:10.1e}"
    print(f"{e['kind']:28}{found}{counts}{e['seconds']:9.1f}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--impl", default="auto", help=f"an implementation, or that of CUDA on the host: {', '.join(SIMULATED)}")
    add("--rows", type=int, default=1_000_000)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--kinds", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    add("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.impl in SIMULATED:
        ops.IMPLEMENTATIONS[args.impl] = ops.Implementation("simulated", lambda device: None)
    impl = ops.resolve_impl(args.impl, torch.device(args.device))
    print_header(impl, args.device, args.seed)
    report = Report(args, impl)
    names = args.kinds or list(KINDS)
    shares = sum(KINDS[name].share for name in names)
    for name in names:
        report.add(sweep(name, -int(-args.rows * KINDS[name].share // shares), impl, args.device, args.seed))
    total = report.finish()
    if total["differ"] or total["oracle_differs"] or total["largest_error"] > SIMILARITY:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
