"""The machine code of the Triton kernels on each chip: registers, spills, shared memory, loads. Needs no GPU.

    python benchmarks/compile_report.py --json benchmarks/results/triton_compile.json

It compiles every kernel ahead of time as the launches in `pez_fast._triton` would, in the default configurations of
`tune.candidates`; for most chips only the scans and the decision. It exits with 1 if a kernel spills, takes more shared
memory than the chip has, or scans without tensor cores. The chain is the number of loads that each need the result of
the one before, on the worst path through a kernel; it does not follow values through shared memory, such as the best
key.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from provenance import write
from sass import functions
from sass_loads import loads_by_width, longest_load_chain
from tables import aligned
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from pez_fast._triton import nearest, splice, tune

ARCHS = {"sm_80": (8, 0), "sm_86": (8, 6), "sm_89": (8, 9), "sm_90": (9, 0), "sm_100": (10, 0), "sm_120": (12, 0)}
WHOLE = ("sm_80", "sm_90", "sm_100")  # on the other chips only kernels of these names:
PART = re.compile("scan|decide")
TENSOR_CORES = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync")
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass
class Launch:
    """Everything that determines a compiled kernel."""

    function: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list]
    options: dict[str, Any]


WORK: list[tuple[Launch, str]] = []  # (what to compile, for which chip)


@dataclass
class Compiled:
    kernel: str
    configuration: str
    arch: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    loads_of_128_bits: int
    load_chain: int
    tensor_cores: str

    def faults(self, shared_limit: int | None = None) -> list[str]:
        """What is wrong with it, in words."""
        limit = tune.shared_limit(ARCHS[self.arch]) if shared_limit is None else shared_limit
        wrong = [f"spills {self.spilled_bytes} bytes"] if self.spilled_bytes else []
        if self.shared_bytes > limit:
            wrong.append(f"takes {self.shared_bytes} bytes of shared memory, of which there are {limit}")
        if "scan" in self.kernel and not self.tensor_cores:
            wrong.append("does not use tensor cores")
        return wrong


def specialised(function: JITFunction, args: tuple, options: dict[str, Any]) -> Launch:
    """The launch with these arguments, specialised to them as Triton does at run time."""
    given = {
        **dict(zip(function.arg_names, args, strict=False)),
        **{k: v for k, v in options.items() if k in function.arg_names},
    }
    plain = {p.name for p in function.params if p.do_not_specialize}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list] = {}
    for at, parameter in enumerate(function.params):
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and name not in plain):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(at,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in plain:
                attributes[(at,)] = [["tt.divisibility", 16]]
    rest = {k: v for k, v in options.items() if k not in function.arg_names}
    return Launch(function, signature, constants, attributes, rest)


@contextmanager
def recorded(launches: list[Launch]) -> Iterator[None]:
    """Notes the arguments of each kernel instead of running it."""
    run = JITFunction.run

    def note(self, *args, grid, warmup, **options):
        launch = specialised(self, args, options)
        if launch not in launches:
            launches.append(launch)

    JITFunction.run = note
    try:
        yield
    finally:
        JITFunction.run = run


def launches(
    capability: tuple[int, int], rows: list[int], widths: list[int], dtypes: list[torch.dtype], tokens: int
) -> list[Launch]:
    """All launches of searches and splices of these sizes on such a chip."""
    met: list[Launch] = []
    before = tune.configuration, tune.multiprocessors, tune.capability
    tune.configuration = lambda device, n, d, tokens, launch: tune.candidates(capability, n)[0]
    tune.multiprocessors = lambda device: 100
    tune.capability = lambda device: capability
    try:
        with recorded(met):
            for dtype in dtypes:
                for d in widths:
                    weight, ids = torch.empty(tokens, d, dtype=dtype), torch.empty(tokens, dtype=torch.int64)
                    unit = torch.empty(-(-tokens // 256) * 256, -(-d // 64) * 64, dtype=torch.float16)
                    prepared = [unit, torch.empty(1), torch.empty(tokens, dtype=torch.float64)]
                    for n in rows:
                        nearest.nearest(torch.empty(n, d, dtype=dtype), weight, ids, prepared)
                    template, hard = torch.empty(4, 77, d, dtype=dtype), torch.empty(4, 16, d)
                    slots, owner = torch.empty(16, dtype=torch.int64), torch.empty(4, dtype=torch.int64)
                    splice.splice(template, hard, slots, owner)
                    splice.splice_backward(template, slots, owner, 4)
    finally:
        tune.configuration, tune.multiprocessors, tune.capability = before
    return met


def compiled(launch: Launch, arch: str) -> Compiled:
    """Compile for a chip and read the result."""
    major, minor = ARCHS[arch]
    constants = {(launch.function.arg_names.index(name),): value for name, value in launch.constants.items()}
    source = ASTSource(launch.function, launch.signature, constants, launch.attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        usage, code = (
            subprocess.run(
                [triton.knobs.nvidia.cuobjdump.path, what, file.name], capture_output=True, text=True, check=True
            ).stdout
            for what in ("--dump-resource-usage", "--dump-sass")
        )
    (kernel,) = functions(code.splitlines())
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    blocks = [f"{n.removeprefix('BLOCK_').lower()} {v}" for n, v in launch.constants.items() if n.isupper()]
    types = sorted({t.lstrip("*") for n, t in launch.signature.items() if n in ("x", "weight", "template", "grad")})
    configuration = ", ".join(
        [*types, *blocks, *(f"{k.removeprefix('num_')} {v}" for k, v in launch.options.items() if k.startswith("num_"))]
    )
    return Compiled(
        kernel=launch.function.__name__.strip("_").removesuffix("_kernel"),
        configuration=configuration,
        arch=arch,
        registers=numbers["REG"],
        spilled_bytes=numbers["STACK"] + numbers["LOCAL"],
        shared_bytes=made.metadata.shared,
        loads_of_128_bits=loads_by_width(kernel).get(128, 0),
        load_chain=longest_load_chain(kernel),
        tensor_cores=", ".join(sorted(set(TENSOR_CORES.findall(made.asm["ptx"])))),
    )


def compiled_at(number: int) -> Compiled:
    """For other processes: a kernel cannot be sent to a process, but a forked process has the kernels."""
    return compiled(*WORK[number])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS))
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64, 128, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--tokens", type=int, default=49408)
    parser.add_argument("--kernels", default="", help="only those whose name holds this")
    parser.add_argument("--shared-limit", type=int, help="bytes, in place of what the chip has")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if tune.INTERPRETED:
        parser.error("TRITON_INTERPRET must not be set: interpreted kernels are not compiled")

    dtypes = [getattr(torch, name) for name in args.dtypes]
    WORK[:] = [
        (launch, arch)
        for arch in args.arch
        for launch in launches(ARCHS[arch], args.rows, args.widths, dtypes, args.tokens)
        if args.kernels in launch.function.__name__ and (arch in WHOLE or PART.search(launch.function.__name__))
    ]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("fork")) as pool:
        results = list(pool.map(compiled_at, range(len(WORK))))
    header = [
        "kernel",
        "configuration",
        "arch",
        "registers",
        "spilled",
        "shared",
        "128-bit loads",
        "chain",
        "tensor cores",
    ]
    print(aligned([header, *(list(asdict(r).values()) for r in results)]))
    faults = [
        f"{r.kernel} ({r.configuration}) on {r.arch} {fault}" for r in results for fault in r.faults(args.shared_limit)
    ]
    for fault in faults:
        print(fault, file=sys.stderr)
    if args.json:
        write(args.json, {"triton": triton.__version__, "kernels": [asdict(r) for r in results]})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
