"""Are the ids those of the oracle? A sweep over a million queries in every kind of table.

    python benchmarks/parity.py --impl cpu --rows 1000000

The oracle is the exhaustive search in float64, near ties settled exactly (`pez_fast._shared.settle`). It shares that last step with
some implementations, so on some rows of each kind it is itself held to `pez_fast.reference`, which decides by fractions.
Similarities must be within 1e-6 of the float64 cosine. On GPUs, cosines closer than double-double can tell count as equal: a row whose
token is as good as the oracle's in this sense is "level". Exits with 1 if an id differs or a similarity is off.
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
from pez_fast._shared import arithmetic, settle

SIMILARITY = 1e-6
REFERENCE_ROWS, REFERENCE_ELEMENTS = 8, 20_000  # rows of a kind compared with fractions, in tables no larger than that
COUNTS = ("certified", "rescored", "rescanned")
SIMULATED = {
    f"simulated-{card}": card for card in ("ampere", "ada", "hopper")
}  # the CUDA kernels on the host, adding as such a card does
EXACT = ("torch", "cpu")  # on GPUs cosines that double-double cannot tell apart count as equal


def oracle(x: Tensor, table: TokenTable) -> tuple[Tensor, Tensor]:
    """ids (N,), cosine (N,) float64; a zero row has the lowest allowed id."""
    ids = torch.full((len(x),), int(table.ids[0]), device=x.device)
    cosine = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    directed = (x != 0).any(-1)
    if directed.any():
        ids[directed] = settle.exhaustive(x[directed], table.weight, table.ids)
        cosine[directed] = settle.float64_cosine(x[directed], table.weight[ids[directed]])
    return ids, cosine


def differences(case: Case, impl: str, device: str, counts: Tensor) -> tuple[list[dict[str, Any]], int, float]:
    """The rows whose id is wrong, how many others are as good as the oracle's, and the largest error of a similarity."""
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
    """Whether the cosines differ by less than double-double tells apart."""
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
    """Rows on which the oracle and the reference differ, of REFERENCE_ROWS."""
    x = case.x[:REFERENCE_ROWS]
    banned = () if case.banned is None else case.banned.tolist()
    expected, _ = reference.nearest_token(x, case.weight, banned)
    return int((oracle(x, TokenTable(case.weight, case.banned))[0] != expected).sum())


def sweep(name: str, rows: int, impl: str, device: str, seed: int) -> dict[str, Any]:
    """Tables of one kind until so many rows were searched for."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--impl", default="auto", help=f"an implementation, or that of CUDA on the host: {', '.join(SIMULATED)}"
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}; default: all"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.impl in SIMULATED:
        ops.IMPLEMENTATIONS[args.impl] = ops.Implementation("pez_fast._cuda.simulated", lambda device: None)
    impl = ops.choose(args.impl, torch.device(args.device))
    names = args.kinds or list(KINDS)
    shares = sum(KINDS[name].share for name in names)
    print(f"impl {impl} on {args.device}, seed {args.seed}")
    print(
        f"{'':28}{'rows':>9}{'tables':>8}{'differ':>8}{'level':>8}{'error':>10}"
        + "".join(f"{c:>11}" for c in COUNTS)
        + f"{'seconds':>9}"
    )
    entries: list[dict[str, Any]] = []

    def save(final: bool) -> dict[str, Any]:
        keys = ("rows", "tables", "differ", "level", *COUNTS, "oracle_rows", "oracle_differs", "seconds")
        total = {key: sum(e[key] for e in entries) for key in keys} | {
            "kind": "all",
            "largest_error": max(e["largest_error"] for e in entries),
        }
        if args.out:
            results = {
                "impl": impl,
                "device": args.device,
                "seed": args.seed,
                "complete": final,
                "kinds": entries,
                "total": total,
            }
            write(args.out, results, final)
        return total

    for name in names:
        entry = sweep(name, -int(-args.rows * KINDS[name].share // shares), impl, args.device, args.seed)
        entries.append(entry)
        print_entry(entry)
        save(final=False)
    total = save(final=True)
    print_entry(total)
    print(f"the oracle and fractions differ on {total['oracle_differs']} of {total['oracle_rows']} rows")
    for entry in entries:
        for example in entry.get("examples", []):
            print(f"{entry['kind']}: {example}")
    if total["differ"] or total["oracle_differs"] or total["largest_error"] > SIMILARITY:
        raise SystemExit(1)


def print_entry(e: dict[str, Any]) -> None:
    counts = "".join(f"{e[c]:11}" for c in COUNTS)
    print(
        f"{e['kind']:28}{e['rows']:9}{e['tables']:8}{e['differ']:8}{e['level']:8}{e['largest_error']:10.1e}{counts}{e['seconds']:9.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
