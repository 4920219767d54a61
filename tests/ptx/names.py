"""How kernels, lanes and lines of sources are called in messages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

LONGEST, LONGEST_LINE = 80, 120


@cache
def demangled(name: str) -> str:
    """`scan(float const*)` for `_Z4scanPKf`; the name itself where c++filt is missing or does not know it."""
    tool = shutil.which("c++filt") if name.startswith("_Z") else None
    if not tool:
        return name
    done = subprocess.run([tool, name], capture_output=True, text=True, check=False)
    return done.stdout.strip() or name


@cache
def readable(name: str) -> str:
    """`pez::scan<16>`: without parameters, result and anonymous namespaces, and not too long."""
    text, _ = divided(re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", demangled(name)).removeprefix("void "))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def divided(text: str) -> tuple[str, str]:
    """`f<1>(int, float*)` -> what is in front of the parentheses at the end, and what is in them."""
    depth = 0
    for at in range(len(text) - 1, -1, -1) if text.endswith(")") else ():
        depth += (text[at] == ")") - (text[at] == "(")
        if depth == 0:
            return text[:at], text[at + 1 : -1]
    return text, ""


def parameter_types(name: str) -> list[str]:
    """The C++ types of a mangled function's parameters; none where they are not known."""
    depth, types = 0, [""]
    for letter in divided(demangled(name))[1]:
        depth += (letter in "<(") - (letter in ">)")
        if letter == "," and depth == 0:
            types.append("")
        else:
            types[-1] += letter
    return [one.strip() for one in types if one.strip()]


def lanes(mask: int) -> str:
    """`lanes 0-15, 31` for a mask."""
    members = [lane for lane in range(32) if mask >> lane & 1]
    return f"lane{'s' if len(members) > 1 else ''} {ranges(members)}"


def ranges(numbers: list[int]) -> str:
    """`0-15, 31` for ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


@cache
def lines_of(file: str) -> list[str]:
    """The lines of a source; none where it is not there."""
    try:
        return Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return []


def quoted(file: str, line: int) -> str:
    """`wrong.cu:12: x = s[i];`, with the line of the source where it is there."""
    lines = lines_of(file)
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    said = f": {text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 2] + ' …'}" if text else ""
    path, here = Path(os.path.normpath(file)), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}{said}"
