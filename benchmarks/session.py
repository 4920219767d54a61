"""Processes of their own for the steps of hardware.py: with this tree importable, a time limit and a log."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEAST = 5.0  # seconds: with less left nothing is begun


def importable(folder: Path, extensions: bool) -> Path:
    """A folder from which `import pez_fast` finds this tree, the kernels as `pez_fast._triton` (as pyproject.toml maps them).

    With the extensions that were built in it, or without: another Python cannot load them.
    """
    package = folder / "tree" / "pez_fast"
    package.mkdir(parents=True)
    for entry in (ROOT / "pez_fast").iterdir():
        if entry.name != "__pycache__" and (extensions or entry.suffix != ".so"):
            (package / entry.name).symlink_to(entry)
    (package / "_triton").symlink_to(ROOT / "kernels" / "triton")
    return package.parent


class Session:
    """Where the children run, with what environment, for how long, and what they have found so far."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.out, self.work, self.rehearse, self.impls = args.out, work, args.rehearse, args.impls
        self.device = "cpu" if args.rehearse else "cuda"
        self.tree = importable(work, extensions=args.rehearse)
        self.results: dict[str, Any] = {"rehearsal": args.rehearse, "steps": {}}
        self.end = time.monotonic() + 60 * args.minutes
        self.log = (args.out / "hardware.log").open("w")
        path = [str(self.tree)]
        if args.wheels:
            path.append(str(work / "site"))
        self.env = os.environ | {"PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
        self.env |= {"XDG_CACHE_HOME": str(work / "cache"), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.env.pop("PEZ_FAST_IMPL", None)
        self.env.pop("PEZ_FAST_AUTOTUNE", None)
        if args.commit:
            self.env["PEZ_FAST_COMMIT"] = args.commit
        if args.rehearse:
            self.env["TRITON_INTERPRET"] = "1"

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, *command: object, seconds: float, **env: str) -> dict[str, Any]:
        """A child from a folder where no other pez_fast is: exit status, seconds, the end of what it printed."""
        seconds = min(seconds, self.left())
        if seconds < LEAST:
            return {"rc": None, "skipped": "no time left"}
        words = [str(word) for word in command]
        self.log.write(f"\n$ {' '.join(words)}\n")
        self.log.flush()
        begun = time.monotonic()
        output = self.work / "output"
        with output.open("w") as printed:
            child = subprocess.Popen(words, stdout=printed, stderr=subprocess.STDOUT, env=self.env | env, cwd=self.tree, start_new_session=True)
            late = not _ended(child, seconds)
            for sent in (signal.SIGINT, signal.SIGKILL) if late else ():  # the first lets pytest write its report
                if child.poll() is None:
                    os.killpg(child.pid, sent)
                    _ended(child, 10)
        text = output.read_text(errors="replace")
        self.log.write(text)
        answer = {"rc": child.returncode, "seconds": round(time.monotonic() - begun, 1)}
        if late:
            answer["timed_out"] = True
        return answer if child.returncode == 0 else answer | {"tail": text[-1500:]}

    def script(self, name: str, *arguments: object, seconds: float, **env: str) -> dict[str, Any]:
        """A benchmark with --out, and the results that it wrote (what it had by then, if it was ended)."""
        written = self.work / f"{name}.json"
        written.unlink(missing_ok=True)
        given: list[object] = ["--device", self.device, "--out", written, *arguments]
        answer = self.run(sys.executable, HERE / f"{name}.py", *given, seconds=seconds, **env)
        if written.exists():
            answer["results"] = json.loads(written.read_text())["results"]
        return answer

    def usable(self, gpu: bool = False) -> list[str]:
        """The implementations; with gpu, those made for GPUs."""
        names = [name for name, usable in self.results["steps"]["provenance"]["implementations"].items() if usable is True]
        return [n for n in names if (not self.impls or n in self.impls) and not (gpu and n in ("cpu", "torch"))]


def _ended(child: subprocess.Popen, seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
