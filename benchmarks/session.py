"""Processes of their own for the steps of hardware.py: with this tree importable, limits, a log, a file of results.

A child says "> …" where it is and "! …" what went wrong: `fault` reads that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEAST = 5.0  # seconds: with less left nothing is begun
LOGGED = 200_000  # characters of a child's output that are kept in the log
GRACE = 3.0  # seconds between asking a child to end and ending it
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def importable(folder: Path, extensions: bool) -> Path:
    """A folder from which `import pez_fast` finds this tree, the Triton kernels where pyproject.toml maps them to.

    With the extensions that were built in it, or without: another Python cannot load them.
    """
    package = folder / "tree" / "pez_fast"
    if package.exists():
        return package.parent
    package.mkdir(parents=True)
    for entry in (ROOT / "pez_fast").iterdir():
        if entry.name != "__pycache__" and (extensions or entry.suffix != ".so"):
            (package / entry.name).symlink_to(entry)
    (package / "_triton").symlink_to(ROOT / "kernels" / "triton")
    return package.parent


def fault(answer: dict[str, Any]) -> str | None:
    """Why a child did not end well, in one line; None where it did."""
    if answer.get("rc") == 0 and "timed_out" not in answer:
        return None
    if "skipped" in answer:
        return str(answer["skipped"])
    if "timed_out" in answer:
        return f"{answer['timed_out']}, in {answer['where']}"
    if answer["rc"] < 0:
        return f"crashed: {signal.Signals(-answer['rc']).name}, in {answer['where']}"
    return f"raised: {answer['said']}, in {answer['where']}"


class Session:
    """One call: where its children run, with what environment, for how long, and what they have found so far."""

    def __init__(self, args: argparse.Namespace, call: str, work: Path) -> None:
        self.work, self.rehearse, self.impls, self.inject = work, args.rehearse, args.impls, args.inject
        self.device = "cpu" if args.rehearse else "cuda"
        self.silence = args.silence
        self.tree = importable(work, extensions=args.rehearse)
        self.results: dict[str, Any] = {
            "call": call,
            "rehearsal": args.rehearse,
            "injected": args.inject,
            "struck": {},
            "wrong": {},
            "steps": {},
        }
        self.end = time.monotonic() + 60 * args.minutes
        self.file = args.out / f"hardware_{call}.json"
        self.log = self.file.with_suffix(".log").open("w")
        path = [str(self.tree), str(work / "site"), os.environ.get("PYTHONPATH", "")]
        self.env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        self.env |= {"XDG_CACHE_HOME": str(work / "cache"), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("PEZ_FAST_IMPL", "PEZ_FAST_AUTOTUNE"):
            self.env.pop(name, None)
        if args.commit:
            self.env["PEZ_FAST_COMMIT"] = args.commit
        if args.rehearse:
            self.env |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self.save()

    def left(self) -> float:
        return self.end - time.monotonic()

    def save(self) -> None:
        """What is found so far, whole at every moment."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(part, self.file)

    def run(self, *command: object, seconds: float, silent: float | None = None, **env: str) -> dict[str, Any]:
        """A child from a folder where no other pez_fast is: exit status, seconds; where it failed, its end.

        It is ended after so many seconds, or after `silent` seconds without a word since its first.
        """
        seconds = min(seconds, self.left())
        if seconds < LEAST:
            return {"rc": None, "skipped": "no time left"}
        words = [str(word) for word in command]
        self.log.write(f"\n$ {' '.join(words)}\n")
        self.log.flush()
        begun, output = time.monotonic(), self.work / "output"
        with output.open("wb") as printed:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=self.env | env,
                cwd=self.tree,
                preexec_fn=_in_a_group_that_dies_with_us,
            )
            try:
                late = _watched(child, output, begun + seconds, silent)
            finally:
                _end(child, min(GRACE, self.silence))
        text = output.read_text(errors="replace")
        middle = "\n[…]\n" if len(text) > LOGGED else ""
        self.log.write(text[: LOGGED // 2] + middle + text[max(LOGGED // 2, len(text) - LOGGED // 2) :])
        self.log.flush()
        answer: dict[str, Any] = {"rc": child.returncode, "seconds": round(time.monotonic() - begun, 1)}
        if late:
            answer["timed_out"] = late
        return answer | _ending(text) if child.returncode or late else answer

    def output(self) -> list[str]:
        """The lines that the last child printed."""
        return (self.work / "output").read_text(errors="replace").splitlines()

    def child(
        self, task: str, *options: object, rest: Sequence[object] = (), seconds: float, **more: Any
    ) -> dict[str, Any]:
        """A task of hardware_child.py, and what it had found when it ended, or was ended."""
        written = self.work / "child.json"
        written.unlink(missing_ok=True)
        faults = [word for fault in self.inject for word in ("--inject", fault)]
        given: list[object] = [*options, *faults, "--out", written, "--device", self.device, task, *rest]
        more = {"silent": 2 * self.silence} | more
        answer = self.run(sys.executable, HERE / "hardware_child.py", *given, seconds=seconds, **more)
        if written.exists():
            answer["results"] = json.loads(written.read_text())["results"]
        return answer

    def script(self, name: str, *arguments: object, seconds: float, **env: str) -> dict[str, Any]:
        """A benchmark, and the results that it had written when it ended, or was ended."""
        written = self.work / f"{name}.json"
        written.unlink(missing_ok=True)
        given = [HERE / f"{name}.py", "--device", self.device, "--out", written, *arguments]
        # Some are silent for long: their whole time limits them.
        answer = self.child("script", rest=given, seconds=seconds, silent=None, **env)
        if written.exists():
            answer["results"] = json.loads(written.read_text())["results"]
        return answer

    def usable(self, gpu: bool = False) -> list[str]:
        """The implementations; with gpu, those made for GPUs (in a rehearsal all)."""
        about = self.results["steps"]["provenance"]["implementations"]
        names = [n for n, reason in about.items() if reason is True and (not self.impls or n in self.impls)]
        return [n for n in names if self.rehearse or not gpu or n not in ("cpu", "torch")]

    def sound(self, gpu: bool = False) -> list[str]:
        """Those that the smoke step has not struck."""
        return [name for name in self.usable(gpu) if name not in self.results["struck"]]

    def each(self, run: Callable[[str], dict[str, Any]], gpu: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        """What each implementation's own process finds; of a struck one, why there is none."""
        for name in self.usable(gpu):
            reason = self.results["struck"].get(name)
            yield name, {"struck": reason} if reason else run(name)


def _ending(text: str) -> dict[str, str]:
    """Of the output of what did not end well: where it was, what it said last of an error, and its end."""
    lines = text.splitlines() or [""]
    where = next((line[2:] for line in reversed(lines) if line.startswith("> ")), "its start")
    said = next((line[2:] for line in reversed(lines) if line.startswith("! ")), lines[-1])
    return {"where": where, "said": said, "tail": text[-3000:]}


def _in_a_group_that_dies_with_us() -> None:
    """In the child: a group of its own, so that it ends with all that it started, and its end if we are killed."""
    os.setpgid(0, 0)
    if sys.platform.startswith("linux"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watched(child: subprocess.Popen, output: Path, end: float, silent: float | None) -> str | None:
    """Wait for a child: None when it has ended, else why it must be."""
    begun = heard = time.monotonic()
    said = 0
    while child.poll() is None:
        now, size = time.monotonic(), output.stat().st_size
        if size != said:
            said, heard = size, now
        if now > end:
            return f"ended after {end - begun:.0f} s"
        if silent and said and now - heard > silent:
            return f"hung: no word for {silent:.0f} s"
        time.sleep(0.05)
    return None


def _end(child: subprocess.Popen, grace: float) -> None:
    """End a child and its group: asked for its stacks, then to end (pytest writes its report), then killed."""
    for sent, to in ((signal.SIGUSR1, os.kill), (signal.SIGINT, os.killpg), (signal.SIGKILL, os.killpg)):
        if child.poll() is None:
            to(child.pid, sent)
            try:
                child.wait(0.3 if sent == signal.SIGUSR1 else grace)
            except subprocess.TimeoutExpired:
                continue
    try:
        os.killpg(child.pid, signal.SIGKILL)  # what it left behind
    except ProcessLookupError:
        pass
