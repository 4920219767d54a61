"""The examples run as a user starts them, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pez_fast

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGE = Path(pez_fast.__file__).parent / "assets" / "emoji" / "images" / "pizza on green.png"
CASES = {  # arguments, and what is printed
    "invert": ((IMAGE, "--prompt-len", 1), r"^pizza on green\.png: \w+\n(  cosine [\d.]+  \w+\n){3}5 steps in"),
    "batch": (
        (IMAGE, "missing.png", "--restarts", 1),
        r"pizza on green +[\d.]+  \w+.*missing +image missing\.png does not exist.*share.*: \w+",
    ),
    "distill": (
        ("a red cat", "--ratio", 0.7, "--restarts", 1),
        r"a red cat\n  -> \w+ \w+  \(cosine [\d.]+, 2 tokens\).*-0\.3 a pizza\n  -> \w+",
    ),
    "own_loop": ((), r"^step   0  cosine .*the secret prompt is    a \w+ \w+ \w+ \w+ model\n$"),
    "own_objective": (("--avoid", "red"), r"as it is: \w+.*away from 'red': \w+.*\(cosine with 'red' -?[\d.]+\)\n$"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_example_prints_what_it_promises(name: str, tmp_path: Path):
    arguments, expected = CASES[name]
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments, "--steps", 5]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.DOTALL), done.stdout
    assert "Traceback" not in done.stderr


def test_the_readme_lists_every_example():
    listed = re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
