"""Runs Triton launchers under a driver that notes launches; `recorded_triton.record` starts it.

Usage: python triton_child.py REQUESTS RECORDINGS, two files of pickles.
"""

from __future__ import annotations

import ctypes
import pickle
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from cards import Card
from ptx.launches import Launch
from ptx.tensor_map import ELEMENT_TYPES, SWIZZLES, TensorMap
from recorded_tensors import Tensors
from recorded_triton import Allocation, Array, RecordedLaunch, Recording, Search, Splice, SpliceBackward
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

CONSTEXPR, KERNEL, TUPLE = range(3)  # the kinds of an argument, by Triton's numbers
FORMATS = {
    "i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q",
    "u1": "<B", "u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q",
    "fp16": "<e", "fp32": "<f", "f32": "<f", "fp64": "<d",
}  # fmt: skip


class Memory:
    """The allocations that the launches of one recording use, as they were before the first of these launches."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.used: dict[int, tuple[int, np.ndarray | None]] = {}  # size and bytes by address

    def base(self, address: int) -> int:
        """The address of the allocation that holds `address`."""
        for base, (size, *_) in self.tensors.allocations.items():
            if base <= address < base + max(size, 1):
                return base
        raise ValueError(f"a kernel gets the address {address:#x}, which belongs to no tensor of this call")

    def use(self, address: int) -> None:
        base = self.base(address)
        size, fresh, _ = self.tensors.allocations[base]
        data = None if fresh else np.frombuffer(ctypes.string_at(base, size), np.uint8)
        _, before = self.used.setdefault(base, (size, data))
        same = data is None if before is None else data is not None and np.array_equal(before, data)
        if not same:
            raise RuntimeError("torch wrote memory between two launches, so they cannot be run one after another")

    def allocations(self, launches: Sequence[RecordedLaunch]) -> list[Allocation]:
        """What these launches use, in the order of their arguments."""
        names: dict[int, str] = {}
        for made in launches:
            for name, array in made.tensors.items():
                if array.address:
                    names.setdefault(self.base(array.address), name)
        return [Allocation(name, base, *self.used[base]) for base, name in names.items()]


class Utilities:
    """What Triton calls `utils`: Triton's C functions for the CUDA driver, which here note what they are told."""

    def __init__(self) -> None:
        self.card: Card | None = None
        self.memory: Memory | None = None
        self.launches: list[tuple[Launch, str]] = []
        self.functions: dict[int, tuple[str, str]] = {}  # the name of a loaded kernel, and its PTX

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.card.shared_bytes,
            "multiprocessor_count": self.card.multiprocessors,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(self, name: str, binary: bytes, shared_bytes: int, device: int) -> tuple[int, int, int, int, int]:
        """Returns module, function, registers, spilled registers, and the most threads of a block."""
        function = len(self.functions) + 1
        self.functions[function] = (name, "")
        return function, function, 0, 0, 1024

    def loaded(self, module: int, function: int, name: str, files: dict[str, str], key: str) -> None:
        """Called by Triton with the files that it compiled."""
        text = next(Path(path).read_text() for file, path in files.items() if file.endswith(".ptx"))
        self.functions[function] = (name, text)

    def unload_module(self, module: int) -> None:
        pass

    def build_signature_metadata(self, types: Sequence[str]) -> tuple[str, ...]:
        return tuple(types)

    def fill_tma_descriptor_tiled(
        self,
        address: int,
        swizzle: int,
        element_bytes: int,
        element_type: int,
        block: Sequence[int],
        shape: Sequence[int],
        strides: Sequence[int],
        padding: int,
    ) -> TensorMap:
        """Same as Triton's function for cuTensorMapEncodeTiled; block, shape and strides are outermost first."""
        return TensorMap(
            address=address,
            element_bytes=element_bytes,
            sizes=tuple(shape)[::-1],
            strides=tuple(stride * element_bytes for stride in strides[-2::-1]),
            box=tuple(block)[::-1],
            element_strides=(1,) * len(shape),
            swizzle=SWIZZLES[swizzle],
            interleave=0,
            fill_nan=padding == 1,
            element_type=ELEMENT_TYPES[element_type],
        ).check()

    def launch(self, *given: Any) -> None:
        """Same as Triton's function, which calls cuLaunchKernelEx."""
        if len(given) != 16:
            raise RuntimeError(f"Triton {triton.__version__} launches kernels in a way that cannot be recorded here")
        grid, (stream, function, cooperative, overlaps), packed = given[:3], given[3:7], given[7]
        scratch, (annotations, types, arguments) = given[11:13], given[13:]
        if 0 in grid:
            return
        if cooperative:
            raise RuntimeError("a cooperative launch cannot be recorded")
        warps, blocks, shared_bytes = packed
        values = list(flattened(arguments, annotations))
        name, ptx = self.functions[function]
        launch = Launch(
            kernel=name,
            grid=(grid[0] * blocks, *grid[1:]),
            block=(32 * warps, 1, 1),
            shared_bytes=shared_bytes,
            overlaps=bool(overlaps),
            cluster=(blocks, 1, 1) if blocks > 1 else None,
            stream=stream,
            arguments=[self.encoded(v, t) for v, t in zip(values, types, strict=True)]
            + [self.encoded(v, "*i8") for v in scratch],
        )
        self.check(launch)
        self.launches.append((launch, ptx))

    def check(self, launch: Launch) -> None:
        """Raises what cuLaunchKernelEx refuses."""
        x, y, z = launch.grid
        if launch.block[0] > 1024 or x >= 1 << 31 or max(y, z) > 65535 or launch.shared_bytes > self.card.shared_bytes:
            raise RuntimeError(f"the driver refuses this launch: {launch}")

    def encoded(self, value: Any, kind: str) -> bytes:
        """The bytes of one argument of Triton's type `kind`."""
        if kind.startswith("*"):
            address = value if isinstance(value, int) else value.data_ptr() if value is not None else 0
            if address:
                self.memory.use(address)
            return struct.pack("<Q", address)
        if kind == "nvTmaDesc":
            self.memory.use(value.address)
            return value.to_bytes()
        if kind == "bf16":
            return struct.pack("<f", value)[2:]
        return struct.pack(FORMATS[kind], value)


def flattened(arguments: Sequence[Any], annotations: Sequence[SimpleNamespace]) -> Iterator[Any]:
    """The arguments that the kernel gets: without those that are constexpr, and with tuples taken apart."""
    for argument, annotation in zip(arguments, annotations, strict=True):
        if annotation.type == KERNEL:
            yield argument
        elif annotation.type == TUPLE:
            yield from flattened(argument, annotation.nested_tuple)


class Launcher(nvidia.CudaLauncher):
    """Triton's launcher, which also notes the arguments by name."""

    def __init__(self, source: Any, metadata: Any) -> None:
        super().__init__(source, metadata)
        self.names = source.fn.arg_names

    def __call__(self, *given: Any) -> None:
        driver = triton.runtime.driver.active
        before = len(driver.utils.launches)
        super().__call__(*given)
        arguments = dict(zip(self.names, given[-len(self.names) :], strict=True))
        tensors = {name: getattr(value, "base", value) for name, value in arguments.items()}
        for launch, ptx in driver.utils.launches[before:]:
            driver.recording.launches.append(
                RecordedLaunch(
                    launch,
                    ptx,
                    {name: Array.of(value) for name, value in tensors.items() if isinstance(value, Tensor)},
                    {name: value for name, value in arguments.items() if isinstance(value, (int, float))},
                )
            )


class Driver:
    """Triton's driver without a GPU. Each card has a device number, because Triton keeps its kernels by that number."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.utils = Utilities()
        self.cards: list[Card] = []
        self.recording = Recording()

    def begin(self, card: Card, tensors: Tensors) -> Recording:
        """What is launched from now on goes into the returned recording."""
        if card not in self.cards:
            self.cards.append(card)
        self.utils.card, self.utils.memory = card, Memory(tensors)
        self.recording = Recording()
        return self.recording

    def get_current_device(self) -> int:
        return self.cards.index(self.utils.card)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        major, minor = self.utils.card.capability
        return GPUTarget("cuda", 10 * major + minor, 32)


def installed() -> Driver:
    """Returns a new driver, after making it Triton's and having torch.cuda tell about its card."""
    needed = ("annotate_arguments", "make_kernel_signature", "make_tensordesc_arg", "PyKernelArg", "ARG_KERNEL")
    missing = [name for name in needed if not hasattr(nvidia, name)]
    if missing:
        sys.exit(f"Triton {triton.__version__} cannot be recorded: its driver lacks {', '.join(missing)}")
    driver = Driver()
    nvidia.PyKernelArg = SimpleNamespace
    nvidia.ARG_CONSTEXPR, nvidia.ARG_KERNEL, nvidia.ARG_TUPLE = CONSTEXPR, KERNEL, TUPLE
    knobs.runtime.kernel_load_end_hook.add(driver.utils.loaded)
    triton.runtime.driver.set_active(driver)
    utilities = driver.utils
    torch.cuda.device_of = lambda tensor: nullcontext()
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.get_device_capability = lambda device=None: utilities.card.capability
    torch.cuda.get_device_name = lambda device=None: f"recorded {utilities.card.capability}"
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=utilities.card.multiprocessors
    )
    return driver


def called(request: Search | Splice | SpliceBackward) -> tuple[Tensor, ...]:
    """What the launcher of the request returns."""
    from pez_fast._triton import nearest, splice, tune

    for asked_once in (tune.capability, tune.multiprocessors, tune._device_name):
        asked_once.cache_clear()
    if isinstance(request, Splice):
        return (splice.splice(request.template, request.hard, request.slots, request.owner),)
    if isinstance(request, SpliceBackward):
        return (splice.splice_backward(request.grad, request.slots, request.owner, request.prompts),)
    ids = torch.arange(len(request.weight)) if request.ids is None else request.ids
    default = tune.configuration
    try:
        if request.scan is not None:
            chosen = tune.Scan(**request.scan)
            tune.configuration = lambda *sizes: chosen
        return nearest.nearest(request.x, request.weight, ids, nearest.prepare(request.weight, ids))
    finally:
        tune.configuration = default


def recorded(request: Search | Splice | SpliceBackward, driver: Driver) -> Recording:
    tensors = Tensors()
    recording = driver.begin(request.card, tensors)
    tensors.hold(*(value for value in vars(request).values() if isinstance(value, Tensor)))
    with tensors:
        results = called(request)
    recording.results = [Array.of(result) for result in results]
    recording.memory = driver.utils.memory.allocations(recording.launches)
    return recording


if __name__ == "__main__":
    asked, made = Path(sys.argv[1]), Path(sys.argv[2])
    requests = pickle.loads(asked.read_bytes())
    active = installed()
    made.write_bytes(pickle.dumps([recorded(request, active) for request in requests]))
