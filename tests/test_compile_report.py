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
    return subprocess.run(
        [sys.executable, str(SCRIPT), *small, *options], capture_output=True, text=True, env=env, check=False
    )


def rows(folder: Path, *options: str) -> tuple[list[dict], subprocess.CompletedProcess]:
    done = report("--json", str(folder / "report.json"), *options)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())["results"]["kernels"], done


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_86", "mma.sync"), ("sm_90", "wgmma.mma_async"), ("sm_120", "mma.sync")]
)
def test_one_kernel(arch, instruction, tmp_path):
    (row,), done = rows(tmp_path, "--arch", arch)
    assert row["kernel"] == "nearest_scan_few" and row["arch"] == arch
    assert row["tensor_cores"] == instruction and row["spilled_bytes"] == 0
    assert 0 < row["registers"] <= 255 and row["shared_bytes"] > 16 * 1024
    assert all(str(row[key]) in done.stdout for key in ("kernel", "arch", "registers", "shared_bytes"))


def test_the_decision_loads_wide_and_does_not_spill(tmp_path):
    (row,), _ = rows(tmp_path, "--kernels", "decide", "--widths", "1024")
    assert row["spilled_bytes"] == 0 and row["tensor_cores"] == ""
    assert row["loads_of_128_bits"] >= 8 and row["load_chain"] >= 2


def test_processes_and_the_other_chips(tmp_path):
    """Of most chips only the scans and the decision, in the order of one process."""
    found, _ = rows(tmp_path, "--arch", "sm_89", "sm_80", "--kernels", "s", "--jobs", "2")
    assert [(row["kernel"], row["arch"]) for row in found if row["arch"] == "sm_89"] == [
        ("nearest_scan_few", "sm_89"),
        ("nearest_decide", "sm_89"),
    ]
    assert {row["kernel"] for row in found if row["arch"] == "sm_80"} >= {"nearest_query", "splice", "splice_backward"}


def test_a_limit_makes_it_fail():
    done = report("--shared-limit", "1000")
    assert done.returncode == 1
    assert "takes" in done.stderr and "bytes of shared memory, of which there are 1000" in done.stderr


def test_not_under_the_interpreter():
    done = report(TRITON_INTERPRET="1")
    assert done.returncode == 2 and "TRITON_INTERPRET must not be set" in done.stderr
