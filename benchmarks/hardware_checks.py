"""The checking steps of hardware.py: build, provenance, smoke, stages, parity, tests, sanitizer.

A step yields its results piece by piece, each with a name; every piece is written before the next one begins.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from session import LEAST, ROOT, Session, fault

Pieces = Iterator[tuple[str, Any]]
SHARED_TESTS = ("nearest", "splice", "project", "table", "triton")
PARITY_ROWS = {"triton": 20_000}  # it compiles for every kind of table; the others take 100,000
FEW_KINDS = ("gaussian", "zero rows")  # of parity.py's tables, in a rehearsal
STAGED = ("cuda", "triton", "torch")  # the implementations that hardware_adapters.py knows
SANITIZING = 130  # seconds that the tests leave to the sanitizer


def build(s: Session) -> Pieces:
    """Build the extensions for this machine's Python and its card alone, beside the symlinks to the tree."""
    if s.rehearse:
        yield "skipped", "the extensions are taken as they were built"
        return
    built = [path.name for path in (s.tree / "pez_fast").glob("*.so")]
    if any("_C_cuda" in name for name in built):
        yield "skipped", "built by the call before"
        return
    into = ["--build-lib", s.tree, "--build-temp", s.work / "build"]
    env: dict[str, Any] = {"PEZ_FAST_BUILD": "auto"} | _architecture()
    answer = s.run(sys.executable, ROOT / "setup.py", "-q", "build_ext", *into, seconds=180, **env)
    built = sorted(path.name for path in (s.tree / "pez_fast").glob("*.so"))
    yield from (answer | {"built": built, "for": env.get("TORCH_CUDA_ARCH_LIST", "setup.py's list")}).items()
    if not any("_C_cuda" in name for name in built):
        yield "why_not", "\n".join(s.output())[-6000:]


def _architecture() -> dict[str, str]:
    """The card's architecture, as TORCH_CUDA_ARCH_LIST names it; nothing if nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"TORCH_CUDA_ARCH_LIST": "9.0a" if told[0] == "9.0" else told[0]} if told else {}


def provenance(s: Session) -> Pieces:
    answer = s.child("about", seconds=90, silent=None)
    if "results" not in answer:
        raise RuntimeError(f"nothing can run: {fault(answer)}")
    found = answer["results"]
    if not found.pop("package").startswith(str(s.tree)):
        raise RuntimeError("another pez_fast than this tree's was imported")
    yield from found.items()


def smoke(s: Session) -> Pieces:
    """Strikes an implementation that crashes, hangs or raises from later steps; marks one with wrong ids."""
    for impl in s.usable():
        silent = s.silence * (2 if impl == "triton" else 1)  # it compiles first
        answer = s.child("smoke", "--impl", impl, seconds=60 + silent, silent=silent)
        reason, bad = fault(answer), _wrong(answer.get("results", []))
        if reason:
            s.results["struck"][impl] = reason
        if bad:
            s.results["wrong"][impl] = bad
        yield impl, answer | {"verdict": reason or bad or "runs, and every id is right"}


def _wrong(found: list[dict[str, Any]]) -> str | None:
    """What is wrong in the results of a smoke step, in one line."""
    said = []
    for one in found:
        bad = {key: one[key] for key in ("wrong", "similarities_off", "gradient_off") if one.get(key)}
        if bad:
            sizes = f"{one['rows']} rows, {one['tokens']} tokens of {one['width']}" if "rows" in one else one["case"]
            counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in bad.items())
            said.append(f"{one['what']} of {sizes}: {counts}")
    return "; ".join(said) or None


def stages(s: Session) -> Pieces:
    """Each stage of a search by itself; in call A only of implementations that are wrong or struck."""
    suspects = [name for name in s.usable() if name in s.results["struck"] or name in s.results["wrong"]]
    chosen = suspects if s.results["call"] == "A" else s.usable(gpu=True)
    for impl in STAGED:
        if impl in chosen:
            answer = s.child("stages", "--impl", impl, seconds=60)
            yield impl, answer | {"first_mismatch": _first_mismatch(answer.get("results", []))}
    if not suspects and s.results["call"] == "A":
        yield "skipped", "no implementation was found wrong"


def _first_mismatch(found: list[dict[str, Any]]) -> str:
    for one in found:
        if one.get("error") or one.get("mismatches"):
            told = one.get("error") or f"{one['mismatches']} mismatches"
            return f"{one['stage']} of {one['rows']} rows, {one['tokens']} tokens of {one['width']}: {told}"
    return f"none in the {len(found)} stages that were held against torch"


def parity(s: Session) -> Pieces:
    def run(impl: str) -> dict[str, Any]:
        given = ["--rows", 20, "--kinds", *FEW_KINDS] if s.rehearse else ["--rows", PARITY_ROWS.get(impl, 100_000)]
        return s.script("parity", "--impl", impl, *given, seconds=30 if impl == "torch" else 60)

    yield from s.each(run)


def tests(s: Session) -> Pieces:
    """The tests of each implementation in a process of its own, with time limits if pytest-timeout is installed."""
    if s.run(sys.executable, "-c", "import pytest, hypothesis", seconds=60)["rc"]:
        yield "skipped", "pytest or hypothesis cannot be imported"
        return
    files = [path for name in SHARED_TESTS if (path := ROOT / "tests" / f"test_{name}.py").exists()]
    plugins = {"xdist": ["-n", "6"], "pytest_timeout": ["--timeout", "60"]}
    options = [word for name, words in plugins.items() if not s.rehearse and _importable(s, name) for word in words]
    # If a test hangs, its stack is printed after so many seconds.
    options += ["-o", "addopts=-q", "-o", "faulthandler_timeout=40", "-p", "no:cacheprovider"]
    options += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]

    waiting = len(s.sound())

    def run(impl: str) -> dict[str, Any]:
        nonlocal waiting
        seconds = min(100.0, max(LEAST, (s.left() - SANITIZING) / waiting))
        waiting -= 1
        report = s.work / "tests.xml"
        report.unlink(missing_ok=True)
        chosen = f"{impl}-{s.device} and test_equals and (round or broadcast)" if s.rehearse else f"{impl}-cuda"
        if impl == "triton" and not s.rehearse:
            chosen += " or test_triton"
        given = ["pytest", *options, f"--junitxml={report}", "-k", chosen, *files]
        answer = s.child("script", rest=given, seconds=seconds, silent=None)
        return answer | (_summary(report) if report.exists() else {})

    yield from s.each(run)


def _importable(s: Session, name: str) -> bool:
    return s.run(sys.executable, "-c", f"import {name}", seconds=30)["rc"] == 0


def _summary(report: Path) -> dict[str, Any]:
    """The number of tests by outcome, and the first lines of those that failed."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [(case, found) for case in cases for kind in ("failure", "error") if (found := case.find(kind)) is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    failures = [f"{c.get('classname')}::{c.get('name')}: {(found.get('message') or '')[:300]}" for c, found in bad[:20]]
    passed = len(cases) - skipped - len(bad)
    return {"passed": passed, "skipped_tests": skipped, "failed": len(bad), "failures": failures}


def sanitizer(s: Session) -> Pieces:
    """compute-sanitizer over our kernels alone; it includes struck ones, to show where a crash comes from."""
    impls = s.usable(gpu=True)
    if s.rehearse:
        yield "skipped", "compute-sanitizer needs a GPU; its child runs without it"
        for impl in impls:
            yield impl, s.child("sanitized", "--impl", impl, seconds=60)
        return
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not tool or not impls:
        yield "skipped", "nothing has kernels of its own" if tool else "compute-sanitizer is not on this machine"
        return
    runs = [(check, impl) for impl in impls for check in ("memcheck", "racecheck")]
    ours = ["--kernel-regex", "kns=nearest", "--kernel-regex", "kns=splice"]  # it skips torch's kernels
    for done, (check, impl) in enumerate(runs):
        child = [sys.executable, str(Path(__file__).with_name("hardware_child.py")), "--impl", impl, "sanitized"]
        seconds = min(120.0, max(60.0, s.left() / (len(runs) - done)))
        for filters in (ours, []):
            command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20", *filters, *child]
            answer = s.run(*command, seconds=seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            lines = s.output()
            if answer["rc"] == 0 or any("COMPUTE-SANITIZER" in line for line in lines):
                break  # otherwise it does not know these options
        told = [line for line in lines if line.startswith("=========")]
        yield f"{impl}, {check}", answer | {"filtered": bool(filters), "summary": told[-1:], "first": told[:60]}


def wheels(s: Session, folder: Path) -> dict[str, Any]:
    """Install packages that this machine lacks into a folder that the children import from."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    return s.run(*pip, "--target", s.work / "site", *sorted(folder.resolve().glob("*.whl")), seconds=120)
