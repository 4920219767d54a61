"""What the CUDA extension is made of on each chip: registers, stack, shared memory, and the instructions that matter. Needs no GPU.

    PEZ_FAST_BUILD=cuda pip install -e . && python benchmarks/cuda_report.py --json benchmarks/results/cuda_build.json

Exits 1 where a main kernel (the scans) spills, multiplies without tensor cores, does not copy asynchronously, or, on sm_90a, the scan of
many rows is not made of wgmma (HGMMA) fed by the tensor memory accelerator (UTMALDG).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import triton
from provenance import write
from tables import aligned

INSTRUCTIONS = re.compile(r"\b(HGMMA|HMMA|UTMALDG|LDGSTS|LDSM)\b")
NEEDED = {"nearest_scan_sm90": ("HGMMA", "UTMALDG"), "nearest_scan_sm80": ("HMMA", "LDGSTS"), "nearest_few": ("HMMA", "LDGSTS")}


@dataclass
class Kernel:
    name: str
    arch: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: dict[str, int] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        needed = next((found for main, found in NEEDED.items() if self.name.startswith(main)), None)
        if needed is None:
            return []
        wrong = [f"spills: {self.stack_bytes} bytes of stack"] if self.stack_bytes else []
        return wrong + [f"holds no {name}" for name in needed if not self.instructions.get(name)]


def tool(name: str, *options: str) -> str:
    """What a tool of Triton's package prints."""
    return subprocess.run([getattr(triton.knobs.nvidia, name).path, *options], capture_output=True, text=True, check=True).stdout


def readable(mangled: str) -> str:
    """_ZN3pez…nearest_few_kernelILi16ELi4EE… -> nearest_few 16 4; types of a template by their letters."""
    match = re.search(r"\d+((?:nearest|splice)\w*?)_kernel(?:I(.*?)E(?:Ev|v))?", mangled)
    if not match:
        return mangled
    arguments = re.findall(r"Li(\d+)", match[2] or "") or re.findall(r"__half|__nv_bfloat16|[fd]", match[2] or "")
    return " ".join([match[1], *arguments])


def kernels(extension: Path) -> list[Kernel]:
    found: dict[tuple[str, str], Kernel] = {}
    arch = ""
    for line in tool("cuobjdump", "--dump-resource-usage", str(extension)).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\w+):", line):
            name = match[1]
        elif "REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            kernel = Kernel(readable(name), arch, numbers["REG"], numbers["STACK"] + numbers["LOCAL"], numbers["SHARED"])
            found[arch, name] = kernel
    counts: dict[tuple[str, str], Counter] = {}
    for line in tool("cuobjdump", "--dump-sass", str(extension)).splitlines():
        if match := re.search(r"arch = (sm_\w+)|code for (sm_\w+)", line):
            arch = match[1] or match[2]
        elif match := re.search(r"Function : (\w+)", line):
            name = match[1]
        elif match := INSTRUCTIONS.search(line):
            counts.setdefault((arch, name), Counter())[match[1]] += 1
    for key, counter in counts.items():
        if key in found:
            found[key].instructions = dict(sorted(counter.items()))
    return sorted(found.values(), key=lambda k: (k.name, k.arch))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    spec = find_spec("pez_fast._C_cuda")
    if spec is None or spec.origin is None:
        print("the CUDA extension was not built; PEZ_FAST_BUILD=cuda pip install . says why", file=sys.stderr)
        return 1
    results = kernels(Path(spec.origin))
    rows = [[k.name, k.arch, k.registers, k.stack_bytes, k.shared_bytes, " ".join(f"{n} {c}" for n, c in k.instructions.items())] for k in results]
    print(aligned([["kernel", "arch", "registers", "stack", "static shared", "instructions"], *rows]))
    faults = [f"{k.name} on {k.arch} {fault}" for k in results for fault in k.faults()]
    mains = {k.name.split()[0] for k in results}
    faults += [f"there is no {main}" for main in NEEDED if main not in mains]
    for fault in faults:
        print(fault, file=sys.stderr)
    if args.json:
        from pez_fast import _C_cuda

        write(args.json, {"build": _C_cuda.build_info(), "kernels": [asdict(k) for k in results]})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
