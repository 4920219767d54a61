"""Runs the steps of hardware.py in processes of their own.

Each process can import this tree and has a limit of time. Its output goes into a log, its results into a file. A child
prints "> …" to say where it is and "! …" to say what went wrong; `fault` reads both.
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
LEAST = 5.0  # no child is started with fewer seconds left
LOGGED = 200_000  # the log keeps so many characters of a child's output
GRACE = 3.0  # a child that is asked to end has so many seconds before it is killed
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def importable(folder: Path, extensions: bool) -> Path:
    """Returns a folder from which `import pez_fast` finds this tree; pyproject.toml maps the Triton kernels alike.

    `extensions` says whether the folder holds the extensions that were built in this tree. Another Python cannot load
    them.
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
    """Says in one line why a child did not end well; returns None where it did."""
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
    """Holds one call: where its children run, in what environment, for how long, and what they have found so far."""

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
        """Writes what is found so far; at every moment the file is whole."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(part, self.file)

    def run(self, *command: object, seconds: float, silent: float | None = None, **env: str) -> dict[str, Any]:
        """Runs a child in a folder that holds no other pez_fast; returns its exit status, seconds and how it failed.

        The session ends the child after `seconds`. It also ends a child that has printed something and then prints
        nothing for `silent` seconds.
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
        """Returns the lines that the last child printed."""
        return (self.work / "output").read_text(errors="replace").splitlines()

    def child(
        self, task: str, *options: object, rest: Sequence[object] = (), seconds: float, **more: Any
    ) -> dict[str, Any]:
        """Runs a task of hardware_child.py; returns what the child had found when it ended or was ended."""
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
        """Runs a benchmark; returns the results that it had written when it ended or was ended."""
        written = self.work / f"{name}.json"
        written.unlink(missing_ok=True)
        given = [HERE / f"{name}.py", "--device", self.device, "--out", written, *arguments]
        # Some benchmarks print nothing for long; only the limit on their whole time ends them.
        answer = self.child("script", rest=given, seconds=seconds, silent=None, **env)
        if written.exists():
            answer["results"] = json.loads(written.read_text())["results"]
        return answer

    def usable(self, gpu: bool = False) -> list[str]:
        """Returns the usable implementations; with `gpu`, those made for GPUs. A rehearsal takes all of them."""
        about = self.results["steps"]["provenance"]["implementations"]
        names = [n for n, reason in about.items() if reason is True and (not self.impls or n in self.impls)]
        return [n for n in names if self.rehearse or not gpu or n not in ("cpu", "torch")]

    def sound(self, gpu: bool = False) -> list[str]:
        """Returns those usable implementations that the smoke step has not struck."""
        return [name for name in self.usable(gpu) if name not in self.results["struck"]]

    def each(self, run: Callable[[str], dict[str, Any]], gpu: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields what each implementation's own process finds; for a struck implementation, why it has no process."""
        for name in self.usable(gpu):
            reason = self.results["struck"].get(name)
            yield name, {"struck": reason} if reason else run(name)


def _ending(text: str) -> dict[str, str]:
    """Reads the output of a child that did not end well: where it was, its last error, and the end of the output."""
    lines = text.splitlines() or [""]
    where = next((line[2:] for line in reversed(lines) if line.startswith("> ")), "its start")
    said = next((line[2:] for line in reversed(lines) if line.startswith("! ")), lines[-1])
    return {"where": where, "said": said, "tail": text[-3000:]}


def _in_a_group_that_dies_with_us() -> None:
    """Runs in the child. It makes a group, so that the child ends with all that it started; the child ends if we do."""
    os.setpgid(0, 0)
    if sys.platform.startswith("linux"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watched(child: subprocess.Popen, output: Path, end: float, silent: float | None) -> str | None:
    """Waits for a child; returns None when it has ended, else why the session must end it."""
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
    """Ends a child and its group: asks for its stacks, asks it to end (pytest writes its report), then kills it."""
    for sent, to in ((signal.SIGUSR1, os.kill), (signal.SIGINT, os.killpg), (signal.SIGKILL, os.killpg)):
        if child.poll() is None:
            to(child.pid, sent)
            try:
                child.wait(0.3 if sent == signal.SIGUSR1 else grace)
            except subprocess.TimeoutExpired:
                continue
    try:
        os.killpg(child.pid, signal.SIGKILL)  # processes that the child left behind
    except ProcessLookupError:
        pass
