"""Runs the launchers of csrc/cuda without a GPU and records each launch exactly as they make it.

Tensors stay on the CPU, so the addresses in the arguments are those of the tensors' memory. No kernel runs."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from math import prod
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from ptx.launches import Launch
from ptx.linkage import placed, reachable, variables
from ptx.parse import parse
from ptx.syntax import Function, Module
from recorded_cuda_build import Built, build, missing

__all__ = ["Built", "Kernel", "Record", "Recorder", "build", "kernels", "missing", "recording"]

STREAM = 0x51000  # the address of the stream that the launchers are given


class Kernel(NamedTuple):
    """What the PTX says of a kernel."""

    name: str
    sizes: list[int]  # bytes of each parameter
    static_bytes: int  # static shared memory
    most_threads: int
    cluster: list[int]  # 1, 1, 1 where it requires none


@cache
def kernels(text: str) -> list[Kernel]:
    """Reads the kernels of a PTX text."""
    module = parse(text)
    return [_kernel(module, function) for function in module.functions.values() if function.entry]


def _kernel(module: Module, function: Function) -> Kernel:
    shared = [v for v in variables(module, reachable(module, function)) if v.space == "shared" and not v.extern]
    threads = function.directives.get("maxntid") or function.directives.get("reqntid") or (1024,)
    cluster = [*function.directives.get("reqnctapercluster", ()), 1, 1, 1][:3]
    return Kernel(function.name, [v.size for v in function.parameters], placed(shared)[1], prod(threads), cluster)


class Record:
    """The functions of tests/cuda_runtime/record.cpp."""

    def __init__(self, built: Built) -> None:
        self._library = ctypes.CDLL(str(built.library))
        self._library.record_kernel.restype = ctypes.c_char_p
        self._library.record_argument.restype = ctypes.c_void_p

    def add_device(self, capability: tuple[int, int], multiprocessors: int, shared_bytes: int, ptx_version: int) -> int:
        return self._library.record_add_device(*capability, multiprocessors, shared_bytes, ptx_version)

    def add_kernel(self, device: int, kernel: Kernel) -> None:
        def array(numbers: list[int]) -> ctypes.Array:
            return (ctypes.c_int * len(numbers))(*numbers)

        sizes, cluster = array(kernel.sizes), array(kernel.cluster)
        limits = kernel.static_bytes, kernel.most_threads
        self._library.record_add_kernel(device, kernel.name.encode(), len(kernel.sizes), sizes, *limits, cluster)

    def taken(self) -> list[Launch]:
        """Returns the launches since the last call."""
        launches = [self._launch(i) for i in range(self._library.record_count())]
        self._library.record_clear()
        return launches

    def _launch(self, i: int) -> Launch:
        numbers = (ctypes.c_uint64 * 13)()
        self._library.record_numbers(i, numbers)
        sizes, (shared_bytes, overlaps, stream, count) = numbers[:9], numbers[9:]
        return Launch(
            kernel=self._library.record_kernel(i).decode(),
            grid=tuple(sizes[:3]),
            block=tuple(sizes[3:6]),
            shared_bytes=shared_bytes,
            overlaps=bool(overlaps),
            cluster=tuple(sizes[6:]) if any(sizes[6:]) else None,
            stream=stream,
            arguments=[self._argument(i, k) for k in range(count)],
        )

    def _argument(self, launch: int, argument: int) -> bytes:
        size = ctypes.c_int()
        address = self._library.record_argument(launch, argument, ctypes.byref(size))
        return ctypes.string_at(address, size.value)


class Recorder:
    """Stands for the module _C_cuda, and collects the launches of its functions in `launches`."""

    def __init__(self, built: Built, device: int, record: Record) -> None:
        self.launches: list[Launch] = []
        self.built, self.device, self._record = built, device, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self.built.module, name)

    def nearest(self, device: int | None, *arguments: Any) -> None:
        self._call("nearest", arguments)

    def splice(self, device: int | None, *arguments: Any) -> None:
        self._call("splice", arguments)

    def splice_backward(self, device: int | None, *arguments: Any) -> None:
        self._call("splice_backward", arguments)

    def _call(self, name: str, arguments: tuple) -> None:
        """Passes the number of the card that is played; a tensor on the CPU has none."""
        try:
            getattr(self.built.module, name)(self.device, *arguments)
        finally:
            self.launches += self._record.taken()


@contextmanager
def recording(
    built: Built,
    capability: tuple[int, int] = (9, 0),
    multiprocessors: int = 4,
    shared_bytes: int = 227 << 10,
    architecture: str | None = None,
) -> Iterator[Recorder]:
    """Lets pez_fast._cuda.nearest and .splice launch on a card of these attributes, which records.

    architecture: the PTX that the card runs, "80" or "90"; by default the newest that it can. The code for sm_90a is
    there on a card of capability 9.0 that runs the PTX of 9.0."""
    architecture = architecture or ("90" if capability >= (9, 0) else "80")
    record = Record(built)
    device = record.add_device(capability, multiprocessors, shared_bytes, int(architecture))
    for text in built.ptx(architecture).values():
        if capability == (9, 0) or not parse(text).target.startswith("sm_90a"):
            for kernel in kernels(text):
                record.add_kernel(device, kernel)
    recorder = Recorder(built, device, record)
    with _callers(built.module) as (nearest, splice), ExitStack() as patched:
        replaced = {
            "current_stream": lambda device=None: SimpleNamespace(cuda_stream=STREAM),
            "device_of": lambda tensor: nullcontext(),
            "get_device_capability": lambda device=None: capability,
        }
        for name, function in replaced.items():
            patched.enter_context(patch.object(torch.cuda, name, function))
        for module in (nearest, splice):
            patched.enter_context(patch.object(module, "_C_cuda", recorder))
        nearest._slack.cache_clear()
        patched.callback(nearest._slack.cache_clear)
        yield recorder


@contextmanager
def _callers(module: ModuleType) -> Iterator[list[ModuleType]]:
    """Yields pez_fast._cuda.nearest and .splice. Without the extension they import `module` instead, for this long."""
    names = ["pez_fast._cuda.nearest", "pez_fast._cuda.splice"]
    if find_spec("pez_fast._C_cuda"):
        yield [importlib.import_module(name) for name in names]
        return
    new = [name for name in names if name not in sys.modules]  # none within another recording
    sys.modules["pez_fast._C_cuda"] = module
    try:
        found = [importlib.import_module(name) for name in names]
    finally:
        del sys.modules["pez_fast._C_cuda"]
    try:
        yield found
    finally:
        for name in new:
            del sys.modules[name]
            delattr(sys.modules["pez_fast._cuda"], name.rpartition(".")[2])
