"""Where a figure comes from: hardware, versions, commit."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """Plain values that go beside every result."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "open_clip_torch", "numpy")},
    }


def now() -> float:
    """Seconds, once the GPU (where there is one in use) has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def write(path: Path, results: Any) -> None:
    """A JSON file of the results with their provenance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"provenance": provenance(), "results": results}, indent=1) + "\n")
    print(f"written to {path}")


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../pez_fast", "../csrc", "../kernels")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} family {fields.get('cpu family', '?')} ({', '.join(fast)})"
