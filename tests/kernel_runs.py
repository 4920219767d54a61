"""Recorded launches of the project's kernels, executed on the PTX machine.

A `Case` is what a launcher asked for: PTX, launches, memory. `Case.run(seed)` executes it on a fresh copy of memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import recorded_triton
import torch
from cards import HOPPER, Card
from ptx.launches import Launch
from ptx.machine import MOST_INSTRUCTIONS, Machine
from ptx.memory import AddressSpace, Storage
from ptx.parse import parse
from ptx.program import Program
from ptx.schedule import Schedule
from recorded_cuda import Built, Recorder, build, recording
from recorded_tensors import Tensors
from recorded_triton import Allocation, Array
from torch import Tensor

Edit = Callable[[str], str]  # changes PTX, to plant a fault


@cache
def program(text: str, kernel: str) -> Program:
    return Program(parse(text), kernel)


@dataclass(frozen=True)
class Ran:
    """The memory after a run, and how many instructions the warps executed."""

    case: Case
    memory: AddressSpace
    executed: int

    def __getitem__(self, name: str) -> Tensor:
        """A result by its name; a RuntimeError if a byte of it was never written."""
        array = self.case.results[name]
        storage = self.memory.find(array.address)
        result = array.read({s.base: s.data[: s.size] for s in (storage,)})
        undefined = array.read({s.base: s.state[: s.size] for s in (storage,)}).view(torch.uint8)
        if undefined.any():
            raise RuntimeError(f"{int(undefined.count_nonzero())} bytes of {name} were never written")
        return result


@dataclass(frozen=True)
class Case:
    launches: list[tuple[str, Launch]]  # PTX and launch
    memory: list[Allocation]
    results: dict[str, Array] = field(default_factory=dict)
    values: dict[str, int | float] = field(default_factory=dict)  # numbers among the arguments, by their names

    def run(self, seed: int, style: str | None = None, limit: int = MOST_INSTRUCTIONS) -> Ran:
        """limit: the most instructions of warps; more are a Deadlock."""
        memory = AddressSpace()
        for one in self.memory:
            memory.add(Storage(one.name, one.address, one.size, poisoned=one.data is None, data=one.data))
        machine = Machine(memory, Schedule(seed, style))
        machine.most = limit
        machine.run([(program(text, launch.kernel), launch) for text, launch in self.launches])
        return Ran(self, memory, machine.executed)

    def edited(self, edit: Edit) -> Case:
        """With changed PTX; a ValueError if nothing changes."""
        launches = [(edit(text), launch) for text, launch in self.launches]
        if launches == self.launches:
            raise ValueError("the edit changes nothing")
        return replace(self, launches=launches)

    def only(self, *names: str) -> Case:
        """With the launches of kernels whose names hold one of these."""
        return replace(self, launches=[one for one in self.launches if any(name in one[1].kernel for name in names)])

    def behind(self, ran: Ran) -> Case:
        """With the memory as another run left it, so that launches before need not run again."""
        memory = []
        for one in self.memory:
            storage = ran.memory.find(one.address)
            written = (storage.state[: one.size] == 0).any()
            memory.append(replace(one, data=storage.data[: one.size].copy() if written else None))
        return replace(self, memory=memory)

    def filled(self, name: str, values: Tensor) -> Case:
        """With these values in a tensor that begins an allocation, as if a launch before had written them."""
        address, data = self.results[name].address, values.contiguous().flatten().view(torch.uint8).numpy()
        (found,) = [one for one in self.memory if one.address == address]
        padded = np.concatenate([data, np.zeros(found.size - len(data), np.uint8)])
        memory = [replace(one, data=padded) if one is found else one for one in self.memory]
        return replace(self, memory=memory)

    @property
    def kernels(self) -> list[str]:
        return [launch.kernel for _, launch in self.launches]


# CUDA


def cuda_search(
    x: Tensor, weight: Tensor, ids: Tensor | None = None, card: Card = HOPPER, built: Built | None = None
) -> Case:
    """A search by csrc/cuda. Results: found, similarity, state; unit, query, rounded, keys of the steps between."""
    ids = torch.arange(len(weight)) if ids is None else ids

    def call(recorder: Recorder) -> dict[str, Tensor]:
        from pez_fast._cuda import nearest

        prepared = nearest.prepare(weight, ids)
        found, similarity = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x))
        made = nearest.launch(nearest.widened(x), weight, ids, prepared, found, similarity)
        return {"found": found, "similarity": similarity, **made._asdict(), "unit": prepared[0]}

    return cuda_case(call, [x, weight, ids], card, built)


def cuda_splice(
    template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor, card: Card = HOPPER, built: Built | None = None
) -> Case:
    def call(recorder: Recorder) -> dict[str, Tensor]:
        from pez_fast._cuda import splice

        return {"out": splice.splice(template, hard, slots, owner)}

    return cuda_case(call, [template, hard, slots, owner], card, built)


def cuda_splice_backward(
    grad: Tensor, slots: Tensor, owner: Tensor, prompts: int, card: Card = HOPPER, built: Built | None = None
) -> Case:
    def call(recorder: Recorder) -> dict[str, Tensor]:
        from pez_fast._cuda import splice

        return {"total": splice.splice_backward(grad, slots, owner, prompts)}

    return cuda_case(call, [grad, slots, owner], card, built)


def cuda_case(
    call: Callable[[Recorder], dict[str, Tensor]], given: Sequence[Tensor], card: Card, built: Built | None
) -> Case:
    built = built or build()
    session: AbstractContextManager[Any] = recording(
        built, card.capability, card.multiprocessors, card.shared_bytes, card.architecture
    )
    with session as recorder, Tensors() as tensors:
        tensors.hold(*given)
        results = call(recorder)
    architecture = card.architecture or ("90" if card.capability >= (9, 0) else "80")
    texts = built.ptx(architecture).values()
    launches = [(next(text for text in texts if f".entry {one.kernel}(" in text), one) for one in recorder.launches]
    memory = [
        Allocation(f"tensor {i}", address, size, None if fresh else copied(address, size))
        for i, (address, (size, fresh, _)) in enumerate(tensors.allocations.items())
    ]
    return Case(launches, memory, {name: Array.of(tensor) for name, tensor in results.items()})


def copied(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8).copy()


# Triton


def triton_cases(requests: Sequence[Any]) -> list[Case]:
    """Cases of `recorded_triton.Search`, `Splice` and `SpliceBackward`, recorded together in one child process.

    Results: found and similarity; out; total; and every tensor among the arguments, by its name in the kernel.
    """
    names = {"Search": ("found", "similarity"), "Splice": ("out",), "SpliceBackward": ("total",)}
    cases = []
    for request, made in zip(requests, recorded_triton.record(requests), strict=True):
        results = {name: array for one in made.launches for name, array in one.tensors.items()}
        results |= dict(zip(names[type(request).__name__], made.results, strict=True))
        values = {name: value for one in made.launches for name, value in one.values.items()}
        cases.append(Case([(one.ptx, one.launch) for one in made.launches], made.memory, results, values))
    return cases
