"""Rows round alike on Intel processors too, whose MKL rounds a row by how many there are.

MKL asks the processor for its maker. A library loaded before it answers "Intel" on any x86 processor, and the tests
that show the rounding are run again behind it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_SHIM = "int mkl_serv_intel_cpu(void) { return 1; } int mkl_serv_intel_cpu_true(void) { return 1; }"
_UNLIKE = """
import torch
g = torch.Generator().manual_seed(0)
x, weight = torch.randn(1024, 384, generator=g), torch.randn(384, 384, generator=g)
whole = torch.nn.functional.linear(x, weight)
print(all(torch.equal(torch.nn.functional.linear(x[:rows], weight), whole[:rows]) for rows in range(8, 64, 4)))
"""
_TESTS = [
    "tests/test_sentence.py::test_a_row_does_not_depend_on_the_batch_at_a_real_width",
    "tests/test_sentence.py::test_texts_are_encoded_as_the_library_does",
    "tests/test_models.py::test_a_row_does_not_depend_on_the_batch",
    "tests/test_language_models.py::test_rows_of_other_draws_share_a_call",
]


@pytest.fixture(scope="module")
def as_intel(tmp_path_factory):
    """The environment of a process whose MKL takes the processor for one of Intel's."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "intel.c").write_text(_SHIM)
    build = ["cc", "-shared", "-fPIC", "-o", folder / "intel.so", folder / "intel.c"]
    try:
        subprocess.run(build, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler: {error}")
    environment = {**os.environ, "LD_PRELOAD": str(folder / "intel.so")}
    asked = subprocess.run([sys.executable, "-c", _UNLIKE], env=environment, capture_output=True, text=True)
    if asked.stdout.strip() != "False":
        pytest.skip("MKL rounds rows alike here, or torch multiplies without it")
    return environment


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch multiplies without MKL")
def test_rows_round_alike(as_intel):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_TESTS]
    done = subprocess.run(command, env=as_intel, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
