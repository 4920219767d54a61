"""benchmarks/compile_report.py: kernels compiled without a GPU, and faults found in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compile_report.py"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


def report(*options: str, **environment: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    small = ["--arch", "sm_90", "--rows", "16", "--widths", "64", "--tokens", "512", "--kernels", "scan"]
    return subprocess.run([sys.executable, str(SCRIPT), *small, *options], capture_output=True, text=True, env=env, check=False)


def test_one_kernel(tmp_path):
    done = report("--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "report.json").read_text())["results"]["kernels"]
    assert row["kernel"] == "nearest_scan_few" and row["arch"] == "sm_90"
    assert row["tensor_cores"] == "wgmma.mma_async" and row["spilled_bytes"] == 0
    assert 0 < row["registers"] <= 255 and row["shared_bytes"] > 16 * 1024
    assert all(str(row[key]) in done.stdout for key in ("kernel", "arch", "registers", "shared_bytes"))


def test_a_limit_makes_it_fail():
    done = report("--shared-limit", "1000")
    assert done.returncode == 1
    assert "takes" in done.stderr and "bytes of shared memory, of which there are 1000" in done.stderr


def test_not_under_the_interpreter():
    done = report(TRITON_INTERPRET="1")
    assert done.returncode == 2 and "TRITON_INTERPRET must not be set" in done.stderr
