"""All that only a GPU can tell, in one run of some minutes, without a network and without installing the package.

    python benchmarks/hardware.py --out results --commit 1a2b3c4      (on a machine with an NVIDIA GPU)
    python benchmarks/hardware.py --out results --rehearse            (anywhere: on a CPU, with tiny shapes)

Steps: building the extensions; provenance; the tests of the device and parity.py; replayed CUDA graphs; times beside baselines, tuned
and not; the targets; whole steps through text towers, and the quality of prompts; compute-sanitizer; more baselines and shapes. Each
runs in processes of its own with a time limit: one that fails is recorded, and the next runs. hardware.json in the folder --out
(default: $OUT) is written after every step, hardware.log holds what the processes printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from session import HERE, LEAST, ROOT, Session

TARGETS = {16: 0.029, 1024: 0.19, 4096: 0.8, 65536: 12.0}  # rows: milliseconds of an H200 for 49,408 tokens of width 1024
SHARED_TESTS = ("nearest", "splice", "project", "table", "triton")


STEPS: dict[str, Callable[[Session], dict[str, Any]]] = {}


def step(function: Callable[[Session], dict[str, Any]]) -> Callable[[Session], dict[str, Any]]:
    STEPS[function.__name__] = function
    return function


@step
def build(s: Session) -> dict[str, Any]:
    """The extensions, for this machine's Python, beside the symlinks to the tree."""
    if s.rehearse:
        return {"skipped": "the extensions are taken as they were built"}
    into = ["--build-lib", s.tree, "--build-temp", s.work / "build"]
    answer = s.run(sys.executable, ROOT / "setup.py", "-q", "build_ext", *into, seconds=150, PEZ_FAST_BUILD="auto")
    return answer | {"built": sorted(path.name for path in (s.tree / "pez_fast").glob("*.so"))}


@step
def provenance(s: Session) -> dict[str, Any]:
    told = s.work / "provenance.json"
    program = (
        f"import sys, json, pathlib; sys.path.append({str(HERE)!r}); import provenance, pez_fast, pez_fast._triton;"
        f"pathlib.Path({str(told)!r}).write_text(json.dumps(provenance.provenance() |"
        f"{{'implementations': pez_fast.info({s.device!r})['implementations'], 'package': pez_fast.__file__}}))"
    )
    answer = s.run(sys.executable, "-c", program, seconds=60)
    if not told.exists():
        raise RuntimeError(f"nothing can run: {answer.get('tail', str(answer)).strip().splitlines()[-1]}")
    found = json.loads(told.read_text())
    if not found.pop("package").startswith(str(s.tree)):
        raise RuntimeError("another pez_fast than this tree's was imported")
    return found


@step
def tests(s: Session) -> dict[str, Any]:
    if s.run(sys.executable, "-c", "import pytest, hypothesis", seconds=60)["rc"]:
        return {"skipped": "pytest or hypothesis cannot be imported; parity alone was checked"}
    files = [path for name in SHARED_TESTS if (path := ROOT / "tests" / f"test_{name}.py").exists()]
    chosen = "cuda or triton" if s.device == "cuda" else "test_equals and (round or broadcast)"
    report = s.work / "tests.xml"
    several = [] if s.rehearse or s.run(sys.executable, "-c", "import xdist", seconds=30)["rc"] else ["-n", "6"]
    options = [*several, "-o", "addopts=-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, f"--junitxml={report}"]
    answer = s.run(sys.executable, "-m", "pytest", *options, "-k", chosen, *files, seconds=120)
    return answer | (_summary(report) if report.exists() else {})


def _summary(report: Path) -> dict[str, Any]:
    """How many tests did what, and the first lines of those that failed."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [(case, case.find(kind)) for case in cases for kind in ("failure", "error") if case.find(kind) is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    failures = [f"{case.get('classname')}::{case.get('name')}: {(found.get('message') or '')[:300]}" for case, found in bad if found is not None]
    return {"passed": len(cases) - skipped - len(bad), "skipped_tests": skipped, "failed": len(bad), "failures": failures[:20]}


@step
def parity(s: Session) -> dict[str, Any]:
    rows = 200 if s.rehearse else 100_000
    return {impl: s.script("parity", "--impl", impl, "--rows", rows, seconds=30 if impl == "torch" else 60) for impl in s.usable()}


@step
def graphs(s: Session) -> dict[str, Any]:
    impls = s.usable() if s.rehearse else s.usable(gpu=True)
    if not impls:
        return {"skipped": "no implementation has kernels of its own"}
    return s.script("captured", "--impls", *impls, *(["--tiny"] if s.rehearse else []), seconds=45)


def _nearest(s: Session, shapes: list[str], rows: list[int], baselines: list[str], impls: list[str], seconds: float, **env: str) -> dict[str, Any]:
    """nearest.py, which stops beginning cases in time to write what it has."""
    if s.rehearse:
        shapes, rows = ["512x64"], [4, 16]
    seconds = min(seconds, s.left() - LEAST)
    options = ["--budget", max(1.0, seconds - 15), "--seconds", 0.02 if s.rehearse else 0.2, "--memory-rows", *(rows[:1] if s.rehearse else rows)]
    lists = ["--impls", *impls, "--baselines", *baselines]
    return s.script("nearest", "--shapes", *shapes, "--rows", *rows, *options, *lists, seconds=seconds, **env)


@step
def nearest(s: Session) -> dict[str, Any]:
    """The shapes that have targets."""
    baselines = ["cached-fp32", "cached-tf32", "cached-bf16", "cublas-fp16", "naive"]
    return _nearest(s, ["49408x1024"], [*TARGETS, 128, 8], baselines, s.usable(), 80)


@step
def splice(s: Session) -> dict[str, Any]:
    return s.script("splice", "--impls", *s.usable(), *(["--tiny"] if s.rehearse else []), seconds=30)


@step
def tuned(s: Session) -> dict[str, Any]:
    """The same again with PEZ_FAST_AUTOTUNE=1: what was chosen, and the times with it."""
    impls = s.usable() if s.rehearse else s.usable(gpu=True)
    if not impls:
        return {"skipped": "no implementation has kernels of its own"}
    answer = _nearest(s, ["49408x1024"], [*TARGETS], ["cublas-fp16"], impls, 60, PEZ_FAST_AUTOTUNE="1")
    answer["chosen"] = {path.name: path.read_text() for path in (s.work / "cache").rglob("pez_fast/*.json")}
    return answer


@step
def targets(s: Session) -> dict[str, Any]:
    """Each target beside the best of our times, before and after tuning."""
    before, after = (s.results["steps"].get(name, {}).get("results", {}).get("cases", []) for name in ("nearest", "tuned"))
    table = []
    for n, limit in TARGETS.items():
        row: dict[str, Any] = {"rows": n, "target_ms": limit}
        for when, cases in (("before", before), ("after", after)):
            here = [c for c in cases if (c["rows"], c["vocabulary"], c["d"]) == (n, 49_408, 1024)]
            best = min((c for c in here if c["ours"]), key=lambda c: c["ms"], default=None)
            if best:
                row[when] = {key: best[key] for key in ("name", "ms", "wrong_ids", "share_of_floor")} | {"met": best["ms"] <= limit}
            row["cublas_ms"] = next((c["ms"] for c in here if c["name"] == "cublas-fp16"), row.get("cublas_ms"))
        table.append(row)
        told = [f"{row[w]['ms']:.3f} ms {w} tuning ({'met' if row[w]['met'] else 'missed'})" for w in ("before", "after") if w in row]
        print(f"  {n:6} rows, target {limit} ms: {', '.join(told) or 'not measured'}")
    return {"table": table}


@step
def engine(s: Session) -> dict[str, Any]:
    """Whole steps through text towers beside the plain port on the same card; where an implementation can be captured, replayed."""
    if s.run(sys.executable, "-c", "import open_clip", seconds=60)["rc"]:
        return {"skipped": "open_clip cannot be imported"}
    impls, prompts = (s.usable(gpu=True) or ["auto"])[:2], ["1"] if s.rehearse else ["1", "8", "64", "256"]
    models = ["ViT-B-32"] if s.rehearse else ["ViT-H-14", "ViT-B-32", "ViT-L-14"]
    few = ["--steps", 2, "--repeats", 2] if s.rehearse else ["--steps", 50, "--repeats", 3]
    options = ["--dtypes", "bfloat16", *few]
    answers = {
        f"{model} {impl}": s.script("pez_step", "--model", model, "--impl", impl, "--prompts", *prompts, *options, seconds=60 if s.rehearse else 40)
        for model in models
        for impl in impls
    }
    if not s.rehearse:
        compiled = ["--model", "ViT-B-32", "--impl", impls[0], "--prompts", 1, 64, "--compile", *options]
        answers["ViT-B-32, compiled"] = s.script("pez_step", *compiled, seconds=60)
    return answers


@step
def quality(s: Session) -> dict[str, Any]:
    """The bundled model's prompts against time, beside the plain port on the same card."""
    few = ["--pictures", 2, "--steps", 2, "--plain-steps", 2] if s.rehearse else ["--pictures", 64, "--steps", 25, 100, 400, "--plain-steps", 40]
    return s.script("quality", *few, seconds=60)


@step
def sanitizer(s: Session) -> dict[str, Any]:
    child: list[object] = [sys.executable, Path(__file__).resolve(), "--sanitized-child", "--device", s.device, "--impls", *s.usable(gpu=True)]
    if s.rehearse:
        return {"skipped": "compute-sanitizer needs a GPU; its child ran without it", "child": s.run(*child, seconds=60)}
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not tool or not s.usable(gpu=True):
        return {"skipped": "compute-sanitizer is not on this machine" if not tool else "no implementation has kernels of its own"}
    answers = {}
    for check in ("memcheck", "racecheck"):
        answer = s.run(tool, "--tool", check, "--error-exitcode", 9, *child, seconds=45, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        lines = (s.work / "output").read_text(errors="replace").splitlines()
        answers[check] = answer | {"summary": [line for line in lines if "SUMMARY" in line]}
    return answers


@step
def other_baselines(s: Session) -> dict[str, Any]:
    names = ["original", "compiled-naive", "compiled-cached", "faiss", "flash-kmeans", "cuvs"]
    return _nearest(s, ["49408x1024"], [16, 1024, 4096], [*names, "cached-fp32"], [], 60)


@step
def other_shapes(s: Session) -> dict[str, Any]:
    shapes = ["49408x512", "49408x768", "49408x1280", "50257x1280", "152064x3584"]
    return _nearest(s, shapes, [16, 1024, 4096, 65536], ["cached-fp32", "cublas-fp16"], s.usable(gpu=True) or s.usable(), 90)


def sanitized_child(device: str, impls: list[str]) -> None:
    """Every kernel once or twice on small shapes, round and ragged, and the ids checked: what compute-sanitizer watches."""
    import torch

    import pez_fast
    from pez_fast._shared import settle

    generator = torch.Generator().manual_seed(0)
    for impl in impls:
        for n, v, d in ((5, 1003, 61), (130, 512, 64), (300, 2000, 128)):
            weight, x = (torch.randn(rows, d, generator=generator).to(device) for rows in (v, n))
            weight[v // 2 :] = weight[: v - v // 2] + 1e-6 * weight[v // 2 :]  # near ties: the rare paths too
            table = pez_fast.TokenTable(weight)
            hard, ids = pez_fast.project(x.requires_grad_(), table, impl)
            assert torch.equal(ids, settle.exhaustive(x.detach(), weight, table.ids)), f"{impl} finds other ids than the oracle"
            slots = torch.tensor([1, 3], device=device)
            pez_fast.splice(torch.zeros(3, 7, d, device=device), hard[None, :2], slots, impl=impl).sum().backward()
            assert x.grad is not None and x.grad.sum() == 6 * d
    print("done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"))
    parser.add_argument("--commit", help="of the tree, where there is no git")
    parser.add_argument("--wheels", type=Path, help="a folder of packages that this machine lacks")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="default: all, in this order")
    parser.add_argument("--impls", nargs="*", help="default: every usable one")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--sanitized-child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sanitized_child:
        return sanitized_child(args.device, args.impls)
    if args.out is None:
        parser.error("--out must name a folder")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        session = Session(args, Path(work))
        if args.wheels:
            wheels, site = sorted(args.wheels.resolve().glob("*.whl")), Path(work) / "site"
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", site]
            session.results["wheels"] = session.run(*pip, *wheels, seconds=120)
        for name, function in STEPS.items():
            if name not in ("build", "provenance") and args.steps and name not in args.steps:
                continue
            begun = time.monotonic()
            try:
                answer = function(session) if session.left() > LEAST or name == "targets" else {"skipped": "no time left"}
            except Exception as e:
                answer = {"error": f"{type(e).__name__}: {e}"}
            session.results["steps"][name] = answer
            (args.out / "hardware.json").write_text(json.dumps(session.results, indent=1) + "\n")
            short = {key: value for key, value in answer.items() if key in ("rc", "skipped", "error", "passed", "failed", "timed_out")}
            print(f"{name}: {time.monotonic() - begun:.1f} s {short or ''}", flush=True)
            if name == "provenance" and "error" in answer:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
