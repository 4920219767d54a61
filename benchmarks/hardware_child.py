"""The tasks that hardware.py runs in processes of their own: one task, for one implementation.

    python benchmarks/hardware_child.py --impl triton --device cuda --out smoke.json smoke
    python benchmarks/hardware_child.py script benchmarks/parity.py --impl triton --rows 1000
    python benchmarks/hardware_child.py script pytest tests/test_nearest.py

It prints "> …" before each piece of work, so that the last line tells where it hangs, and "! …" for an error. It writes
the results after every piece. `--inject triton=wrong` puts a fault into an implementation.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import runpy
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

TASKS = {
    "smoke": "hardware_smoke",
    "sanitized": "hardware_smoke",
    "stages": "hardware_stages",
    "search": "hardware_times",
    "splices": "hardware_times",
    "kernels": "hardware_times",
}


class Task:
    """What a task is given, and where it reports."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.impl, self.device, self.tiny, self.out = args.impl, args.device, args.device == "cpu", args.out
        self.rows, self.rotate, self.shapes, self.seconds = args.rows, args.rotate, args.shapes, args.seconds
        self.found: list[dict[str, Any]] = []

    def at(self, where: str) -> None:
        print(f"> {where}", flush=True)

    def add(self, *found: dict[str, Any]) -> None:
        for one in found:
            plain = [f"{key} {value}" for key, value in one.items() if not isinstance(value, (list, dict))]
            print("  " + ", ".join(plain))
        self.found += found
        self.save()

    def save(self) -> None:
        _write(self.out, self.found)


def _write(out: Path | None, results: Any) -> None:
    """The file is complete at every moment, so this process may be killed."""
    if out:
        part = out.with_suffix(".part")
        part.write_text(json.dumps({"results": results}))
        os.replace(part, out)


def about(device: str) -> dict[str, Any]:
    import provenance

    import pez_fast
    import pez_fast._triton  # noqa: F401

    return provenance.provenance() | {
        "implementations": pez_fast.info(device)["implementations"],
        "package": pez_fast.__file__,
    }


def model(rows: list[int]) -> dict[int, float | None]:
    """The milliseconds on an H200 that time_model.py predicts for these numbers of rows."""
    from time_model import predicted_ms

    return {n: predicted_ms(n) for n in rows}


def script(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["about", "model", "script", *TASKS])
    parser.add_argument("--impl")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inject", action="append", default=[], metavar="IMPL=KIND")
    parser.add_argument("--shapes", nargs="+", default=[])
    parser.add_argument("--rows", type=int, nargs="+", default=[])
    parser.add_argument("--rotate", type=int, nargs="*", default=[], help="rows that are timed over several tables too")
    parser.add_argument("--seconds", type=float, default=0.2, help="for the repetitions of a case")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        if args.inject:
            from hardware_faults import put_in

            for injected in args.inject:
                put_in(*injected.split("="))
        if args.task == "about":
            _write(args.out, about(args.device))
        elif args.task == "model":
            _write(args.out, model(args.rows))
        elif args.task == "script":
            script(args.rest[0], args.rest[1:])
        else:
            getattr(import_module(TASKS[args.task]), args.task)(Task(args))
    except SystemExit as e:
        if isinstance(e.code, str):
            print(f"! {e.code.splitlines()[0]}", flush=True)
        raise
    except BaseException as e:
        traceback.print_exc()
        print(f"! {type(e).__name__}: {(str(e).splitlines() or [''])[0]}", flush=True)
        raise SystemExit(1) from e


if __name__ == "__main__":
    main()
