"""Everything that only a GPU can tell, in three calls of under ten minutes, without network or installation.

    python benchmarks/hardware.py --call A --out $OUT --commit 1a2b3c4    build, smoke, times, graphs, kernels, targets
    python benchmarks/hardware.py --call B --out $OUT --commit 1a2b3c4    stages, parity, tests, compute-sanitizer
    python benchmarks/hardware.py --call C --out $OUT --commit 1a2b3c4    tuned, whole steps, quality, more baselines
    python benchmarks/hardware.py --rehearse --out FOLDER                 anywhere: all three, on a CPU with tiny shapes

Every call builds the extensions, so each may run on a fresh machine. --wheels DIR names a folder of packages that the
machine lacks (for C open_clip_torch, ftfy, wcwidth; transformers with tokenizers for its step "language", and with
diffusers for "diffusion"). The results are hardware_A.json, written after every piece of a step, and hardware_A.log,
everything that was printed. Each implementation is measured in processes of its own with time limits. The step "smoke"
comes first: an implementation that crashes, hangs or raises there is struck from the other steps, with the reason; one
that finds wrong ids is marked, is timed all the same, and its stages are examined. `--inject torch=wrong` (crash,
raise, hang) rehearses that.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import hardware_checks as checks
import hardware_steps as steps
from session import LEAST, Session, fault

CALLS = {
    "A": [
        checks.build,
        checks.provenance,
        checks.smoke,
        checks.stages,
        steps.nearest,
        steps.targets,
        steps.splice,
        steps.graphs,
        steps.kernels,
        steps.second_try,
    ],
    "B": [
        checks.build,
        checks.provenance,
        checks.smoke,
        checks.stages,
        checks.parity,
        steps.machine,
        checks.tests,
        checks.sanitizer,
    ],
    "C": [
        checks.build,
        checks.provenance,
        checks.smoke,
        steps.tuned,
        steps.targets,
        steps.engine,
        steps.quality,
        steps.language,
        steps.joint,
        steps.diffusion,
        steps.other_baselines,
        steps.other_shapes,
        steps.more_engine,
    ],
}
ALWAYS = ("build", "provenance", "smoke")  # the other steps need their results
FAULTS = ("wrong", "crash", "raise", "hang")


def perform(s: Session, chosen: list[str] | None) -> bool:
    """Run the steps of a call, each written piece by piece; returns whether anything could run."""
    for step in CALLS[s.results["call"]]:
        name = step.__name__
        if chosen and name not in (*chosen, *ALWAYS):
            continue
        begun, pieces = time.monotonic(), s.results["steps"].setdefault(name, {})
        try:
            if s.left() < LEAST and step is not steps.targets:
                pieces["skipped"] = "no time left"
            else:
                for key, piece in step(s):
                    if isinstance(piece, dict) and key in s.results["wrong"] and name != "smoke":
                        piece["marked"] = f"finds wrong ids: {s.results['wrong'][key]}"
                    pieces[key] = piece
                    s.save()
        except Exception as e:
            pieces["error"] = f"{type(e).__name__}: {e}"
        s.save()
        print(f"{s.results['call']} {name}: {time.monotonic() - begun:.1f} s{told(pieces)}", flush=True)
        if name == "provenance" and "error" in pieces:
            return False
    return True


def told(pieces: dict[str, Any]) -> str:
    """What went wrong in a step, one line for each problem."""
    plain = [key for key in ("skipped", "error", "why_not") if key in pieces]
    lines = [f"{key}: {str(pieces[key]).splitlines()[-1][:160]}" for key in plain]
    for key, piece in pieces.items():
        if not isinstance(piece, dict):
            continue
        said = [str(piece[what]) for what in ("verdict", "struck", "skipped", "first_mismatch") if piece.get(what)]
        if "verdict" not in piece and "skipped" not in piece and "rc" in piece and fault(piece):
            said.append(str(fault(piece)))
        said += [f"{rows} rows: {reason}" for rows, reason in piece.get("faults", {}).items()]
        said += [f"{piece['passed']} passed, {piece['failed']} failed"] if "passed" in piece else []
        lines += [f"{key}: {'; '.join(said)}"[:240]] if said else []
    return "".join(f"\n    {line}" for line in lines)


def summary(s: Session) -> None:
    """The targets as a table, and the implementations that are struck or wrong."""
    for kind in ("struck", "wrong"):
        for impl, reason in s.results[kind].items():
            print(f"{kind}: {impl}: {reason}")
    table = s.results["steps"].get("targets", {})
    for rows, row in table.items():
        ours = [
            f"{who} {best['ms']:.3f}{' met' if best['met'] else ''}{' WRONG' if 'wrong' in best else ''}"
            for who, best in row.items()
            if isinstance(best, dict)
        ]
        model = f"{row['model_ms']:.3f}" if isinstance(row["model_ms"], float) else "–"
        best = ", ".join(ours) or "not measured"
        print(f"{rows:>6} rows, ms: target {row['target_ms'] or '–'}, model {model}, {best}")
    if table and not any(isinstance(row["model_ms"], float) for row in table.values()):
        print(f"model: {next(iter(table.values()))['model_ms']}")


def ended(number: int, frame: object) -> None:
    """Handles a signal from the caller: the children, which have process groups of their own, must end too."""
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", choices=[*CALLS, "all"], default="all")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"))
    parser.add_argument("--commit", help="of the tree, where there is no git")
    parser.add_argument("--wheels", type=Path, help="a folder of packages that this machine lacks")
    parser.add_argument("--minutes", type=float, default=9, help="for each call")
    names = sorted({step.__name__ for call in CALLS.values() for step in call})
    parser.add_argument("--steps", nargs="+", choices=names, metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--impls", nargs="*", help="default: every usable one")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--inject", action="append", default=[], metavar="IMPL=FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--silence", type=float, default=15, help="seconds without a word that count as hung")
    args = parser.parse_args()
    if args.out is None:
        parser.error("--out must name a folder")
    for fault_ in args.inject:
        if fault_.partition("=")[2] not in FAULTS:
            parser.error(f"--inject must be IMPL=FAULT, the fault one of {', '.join(FAULTS)}; got {fault_}")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, ended)
    with tempfile.TemporaryDirectory() as work:
        ran = True
        for call in CALLS if args.call == "all" else [args.call]:
            session = Session(args, call, Path(work))
            if args.wheels and not (Path(work) / "site").exists():
                session.results["wheels"] = checks.wheels(session, args.wheels)
            ran = perform(session, args.steps) and ran
            summary(session)
            print(f"written to {session.file}", flush=True)
    raise SystemExit(0 if ran else 1)


if __name__ == "__main__":
    main()
