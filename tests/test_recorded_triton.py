"""The recorded launches of the Triton implementation are those that its launchers ask for."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from cards import AMPERE
from inputs import normal, seeded
from ptx.launches import Launch
from ptx.tensor_map import TensorMap
from recorded_triton import Array, RecordedLaunch, Recording, Search, Splice, SpliceBackward, record

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton

from pez_fast._shared import arithmetic, resolve_ties
from pez_fast._shared.halves import half_unit_rows, scan_slack

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8):
    pytest.skip(f"Triton {triton.__version__} launches kernels in another way", allow_module_level=True)

TOKENS, D, WIDTH = 700, 100, 128  # allowed rows of the table, and their elements, padded to WIDTH
STRIDE = 108  # elements between rows of the table
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "f32": 4}  # bytes of a parameter
DECISION = "x weight ids norm query unit keys error x_norm kinds residual found similarity state".split()


def rows(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normal(seeded(f"rows {n}"), n, D).to(dtype)


WEIGHT, IDS = normal(seeded("weight"), TOKENS + 1, STRIDE)[:, :D], torch.arange(1, TOKENS + 1)
WIDER = normal(seeded("template"), 2, 20, 193)
HARD, GRAD = normal(seeded("hard"), 3, 4, 96), normal(seeded("grad"), 2, 20, 96)
SLOTS, OWNER = torch.tensor([3, 5, 6, 9]), torch.tensor([2, 0])
REQUESTS = {
    "one": Search(rows(1), WEIGHT, IDS),
    "few": Search(rows(16), WEIGHT, IDS),
    "float64": Search(rows(64, torch.float64), WEIGHT, IDS),
    "many": Search(rows(300), WEIGHT, IDS),
    "ampere": Search(rows(16), WEIGHT, IDS, card=AMPERE),
    "chosen": Search(rows(16), WEIGHT, IDS, {"block_n": 16, "block_v": 128, "stages": 2}, AMPERE),
    "splice": Splice(WIDER[:, :, 1::2], HARD, SLOTS, OWNER),
    "splice backward": SpliceBackward(GRAD, SLOTS, OWNER, 3),
}
SEARCHES = ("one", "few", "float64", "many", "ampere", "chosen")
N = {name: len(REQUESTS[name].x) for name in SEARCHES}


@pytest.fixture(scope="module")
def recordings() -> dict[str, Recording]:
    return dict(zip(REQUESTS, record(list(REQUESTS.values())), strict=True))


def parameters(ptx: str) -> list[tuple[int, bool]]:
    """Bytes of each parameter of the kernel, and whether it is a pointer."""
    (listed,) = re.findall(r"\.entry \w+\((.*?)\n\)", ptx, re.DOTALL)
    found = []
    for declared in re.findall(r"\.param (.*)", listed):
        length = re.search(r"\[(\d+)\]", declared)
        found.append((int(length[1]) if length else SIZES[declared.split()[0][1:]], ".ptr" in declared))
    return found


def integers(launch: Launch) -> list[int]:
    """The arguments of four bytes."""
    return [int.from_bytes(a, "little", signed=True) for a in launch.arguments if len(a) == 4]


def pointers(made: RecordedLaunch) -> list[int]:
    arguments = zip(made.launch.arguments, parameters(made.ptx), strict=True)
    return [int.from_bytes(argument, "little") for argument, (_, pointer) in arguments if pointer]


def single(value: float) -> int:
    """The bits of a float32."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


@pytest.mark.parametrize("name", REQUESTS)
def test_arguments_fit_the_parameters(recordings, name):
    """As many arguments as parameters, of the same sizes; addresses are those of the tensors, in order."""
    for made in recordings[name].launches:
        assert f".entry {made.launch.kernel}(" in made.ptx
        assert [len(argument) for argument in made.launch.arguments] == [size for size, _ in parameters(made.ptx)]
        maps = [TensorMap.from_bytes(a).address for a in made.launch.arguments if len(a) == 128]
        *addresses, global_scratch, profile_scratch = pointers(made)
        assert maps + addresses == [array.address for array in made.tensors.values()]
        assert global_scratch == profile_scratch == 0
        for address in maps + addresses:
            assert sum(held.address <= address < held.address + held.size for held in recordings[name].memory) == 1


@pytest.mark.parametrize(
    ("name", "programs", "kernel", "scan", "shared"),
    [
        ("one", 16, "_nearest_scan_few_kernel", (6, 128), 4 * 144),  # one row is padded to 16
        ("few", 16, "_nearest_scan_few_kernel", (6, 128), 4 * 144),
        ("float64", 64, "_nearest_scan_few_kernel", (6, 256), 4 * 192),
        ("many", 512, "_nearest_scan_many_kernel", (4, 256), 4 * 384),  # as many programs as multiprocessors
        ("ampere", 16, "_nearest_scan_few_kernel", (6, 128), 3 * 144),  # one buffer less than stages
        ("chosen", 16, "_nearest_scan_few_kernel", (6, 128), 1 * 144),
    ],
)
def test_a_search_is_three_launches(recordings, name, programs, kernel, scan, shared):
    query, scanned, decided = (made.launch for made in recordings[name].launches)
    assert (query.kernel, query.grid, query.block) == ("_nearest_query_kernel", (programs, 1, 1), (128, 1, 1))
    assert (scanned.kernel, scanned.grid, scanned.block) == (kernel, (scan[0], 1, 1), (scan[1], 1, 1))
    assert (decided.kernel, decided.grid, decided.block) == ("_nearest_decide_kernel", (N[name], 1, 1), (128, 1, 1))
    assert 0 <= scanned.shared_bytes - shared * 128 < 1024, "the stages, and little beside"
    assert not any(launch.overlaps or launch.cluster or launch.stream for launch in (query, scanned, decided))


@pytest.mark.parametrize("name", SEARCHES)
def test_arguments_of_the_queries_and_the_decision(recordings, name):
    """Sizes and strides, and bounds in float32; a stride of 1 is compiled into the kernel."""
    query, _, decided = recordings[name].launches
    tiles, groups = (3, 64) if name == "many" else (6, 128)
    slack = scan_slack(WIDTH, REQUESTS[name].card.capability, groups)
    bounds = (slack, 2 * resolve_ties.float64_error(D), arithmetic.error(D))
    assert integers(query.launch) == [N[name], D, WIDTH, D]
    assert integers(decided.launch) == [TOKENS, tiles, D, WIDTH, D, STRIDE, *(single(bound) for bound in bounds)]
    assert list(decided.tensors) == DECISION
    assert decided.tensors["x_norm"] == query.tensors["norm"] and decided.tensors["norm"] != query.tensors["norm"]


@pytest.mark.parametrize("name", SEARCHES)
def test_operands_of_the_scan(recordings, name):
    """On Hopper tensor maps, each with the tensor's shape and strides behind it; on Ampere pointers."""
    scanned = recordings[name].launches[1]
    sizes = [N[name], 3, 3, WIDTH] if name == "many" else [N[name], 6, WIDTH]
    operands = [(scanned.tensors["query"], scanned.values["BLOCK_N"]), (scanned.tensors["table"], 128)]
    if name == "many":
        operands = [(operands[0][0], 128), (operands[1][0], 256)]
    if REQUESTS[name].card == AMPERE:
        assert ".target sm_80" in scanned.ptx and integers(scanned.launch) == sizes
        return
    assert ".target sm_90a" in scanned.ptx
    for (operand, block), first in zip(operands, (0, 5), strict=True):
        described, *shape_and_strides = scanned.launch.arguments[first : first + 5]
        tensor_map = TensorMap.from_bytes(described)
        length = operand.shape[0]
        assert (tensor_map.address, tensor_map.element_type) == (operand.address, "float16")
        assert (tensor_map.sizes, tensor_map.strides) == ((WIDTH, length), (2 * WIDTH,))
        assert (tensor_map.box, tensor_map.swizzle, tensor_map.fill_nan) == ((64, block), 128, False)
        assert b"".join(shape_and_strides) == struct.pack("<iiqq", length, WIDTH, WIDTH, 1)
    assert integers(scanned.launch)[4:] == sizes


@pytest.mark.parametrize("name", SEARCHES)
def test_memory_of_a_search(recordings, name):
    """The kernels' results are there and hold nothing; everything else holds what the launchers were given."""
    request, recording = REQUESTS[name], recordings[name]
    memory = {held.name: held for held in recording.memory}
    written = {"query", "error", "x_norm", "kinds", "keys", "found", "similarity", "state"}
    named = recording.launches[2].tensors
    bases = {held.address: held for held in recording.memory}
    assert {argument for argument, array in named.items() if bases[array.address].data is None} == written
    assert len(memory) == len(recording.memory) - 1 == 13, "two arguments are called norm"
    known = {held.address: held.data for held in recording.memory if held.data is not None}
    unit, residual, norm = half_unit_rows(WEIGHT, IDS, 256, 64)
    given = {"x": request.x, "weight": WEIGHT, "ids": IDS, "unit": unit, "residual": residual, "norm": norm}
    for argument, tensor in given.items():
        assert torch.equal(named[argument].read(known), tensor), argument
    assert recording.results == [named["found"], named["similarity"]]
    assert memory["found"].size == 8 * N[name] and memory["similarity"].size == 4 * N[name]
    assert memory["keys"].size == 8 * N[name] * (3 if name == "many" else 6)


def test_splice(recordings):
    """The template is every second element of a wider tensor, from the second on."""
    (made,) = recordings["splice"].launches
    assert (made.launch.grid, made.launch.block) == ((5, 1, 1), (128, 1, 1)), "8 of the 40 rows to a program"
    assert list(made.tensors) == ["template", "hard", "slots", "owner", "out"]
    assert integers(made.launch) == [40, 20, 4, 96, 20 * 193, 193, 2, 4 * 96, 96]
    template, *others, out = recordings["splice"].memory
    assert made.tensors["template"].address == template.address + 4 and template.size == WIDER.nbytes
    known = {held.address: held.data for held in (template, *others)}
    for argument, value in vars(REQUESTS["splice"]).items():
        assert argument == "card" or torch.equal(made.tensors[argument].read(known), value)
    assert out.data is None and recordings["splice"].results == [made.tensors["out"]]


def test_splice_backward(recordings):
    (made,) = recordings["splice backward"].launches
    assert made.launch.grid == (3 * 4, 1, 1) and made.launch.shared_bytes > 0
    assert integers(made.launch) == [2, 12, 4, 96, 20 * 96, 96]
    grad, slots, owner, total = recordings["splice backward"].memory
    assert total.size == 3 * 4 * 96 * 4 and total.data is None and (grad.name, total.name) == ("grad", "total")
    assert grad.data.tobytes() == GRAD.numpy().tobytes() and owner.data.tobytes() == OWNER.numpy().tobytes()
    assert recordings["splice backward"].results == [made.tensors["total"]]


def test_a_card_with_too_little_shared_memory():
    small = replace(REQUESTS["few"].card, shared_bytes=64 << 10)
    with pytest.raises(RuntimeError, match="out of resource: shared memory"):
        record([replace(REQUESTS["few"], card=small)])


def test_an_array_is_read_where_it_lies():
    data = torch.arange(24, dtype=torch.float32)
    memory = {1024: data.numpy().view(np.uint8)}
    array = Array(1024 + 4, (2, 3), (12, 2), torch.float32)
    assert array.read(memory).tolist() == [[1, 3, 5], [13, 15, 17]]
    with pytest.raises(ValueError, match="no allocation"):
        Array(1024 + 8, (2, 3), (18, 2), torch.float32).read(memory)


def test_memory_that_torch_writes_between_two_launches():
    """The launches could not be run one after another; nor is a foreign address an argument."""
    from recorded_tensors import Tensors
    from triton_child import Memory

    held, tensors = torch.ones(4), Tensors()
    tensors.hold(held)
    with tensors:
        memory, made = Memory(tensors), torch.empty(4)
        for tensor in (held, made, held[1:]):
            memory.use(tensor.data_ptr())
        held.add_(1)
        with pytest.raises(RuntimeError, match="between two launches"):
            memory.use(held.data_ptr())
        made.zero_()
        with pytest.raises(RuntimeError, match="between two launches"):
            memory.use(made.data_ptr())
    with pytest.raises(ValueError, match="belongs to no tensor"):
        memory.use(torch.ones(4).data_ptr())


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [("i32", -2, "feffffff"), ("i64", 1 << 40, "0000000000010000"), ("fp32", 0.1, "cdcccc3d"), ("i1", True, "01"),
     ("fp64", 0.1, "9a9999999999b93f"), ("bf16", 1.0, "803f"), ("fp16", 1.0, "003c"), ("*fp32", None, "00" * 8)],
)  # fmt: skip
def test_bytes_of_an_argument(kind, value, expected):
    from triton_child import Utilities

    assert Utilities().encoded(value, kind).hex() == expected
