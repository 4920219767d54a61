"""Says where a result comes from: hardware, versions, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """Returns the plain values that stand beside every result."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        **_gpu(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "open_clip_torch", "numpy")},
    }


def now() -> float:
    """Waits until the GPU, if one is in use, has finished its work, and returns the time in seconds."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def write(path: Path, results: Any, final: bool = True) -> None:
    """Writes the results and their provenance as a JSON file; it prints the path of a final file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"provenance": provenance(), "results": results}, indent=1) + "\n")
    if final:
        print(f"written to {path}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Returns the commit that git names; PEZ_FAST_COMMIT names it for a copy of the tree that has no history."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
            )
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    if "PEZ_FAST_COMMIT" in os.environ:
        return os.environ["PEZ_FAST_COMMIT"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../pez_fast", "../csrc", "../kernels")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    fast = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni") if flag in fields.get("flags", "").split()
    ]
    return f"{fields.get('model name', platform.machine())} family {fields.get('cpu family', '?')} ({', '.join(fast)})"


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
    except FileNotFoundError:
        driver = ""
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver or None,
        "cuda": torch.version.cuda,
    }
