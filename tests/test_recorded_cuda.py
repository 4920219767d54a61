"""The launchers of csrc/cuda, recorded: grids, arguments and tensor maps are what the sources say, on three cards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ptx.launches import Launch
from ptx.tensor_map import TensorMap
from recorded_cuda import STREAM, Built, build, kernels, missing, recording
from recorded_cuda_build import ROOT

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"cannot build the launchers: {missing()}")

HOPPER, AMPERE, GEFORCE = (9, 0), (8, 0), (8, 6)
SHARED_BYTES = {HOPPER: 227 << 10, AMPERE: 163 << 10, GEFORCE: 99 << 10}
MULTIPROCESSORS = 5


@pytest.fixture(scope="module")
def built() -> Built:
    return build()


def changed(folder: Path, name: str, before: str, after: str) -> Path:
    """Returns a copy of csrc in which one line of one source is another."""
    copy = shutil.copytree(ROOT / "csrc", folder / "csrc")
    text = (copy / "cuda" / name).read_text()
    assert text.count(before) == 1
    (copy / "cuda" / name).write_text(text.replace(before, after))
    return copy


class Search(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    ids: torch.Tensor
    prepared: list[torch.Tensor]
    found: torch.Tensor
    similarity: torch.Tensor
    buffers: tuple[torch.Tensor, ...]  # query, rounded, keys, state
    launches: list[Launch]


def search(built: Built, n: int, d: int, capability: tuple[int, int], dtype: torch.dtype = torch.float32) -> Search:
    generator = torch.Generator().manual_seed(n)
    x, weight = (torch.randn(rows, d, generator=generator, dtype=dtype) for rows in (n, 900))
    ids = torch.arange(0, 900, 1)[:700]
    found, similarity = torch.empty(n, dtype=torch.int64), torch.empty(n)
    with recording(built, capability, MULTIPROCESSORS, SHARED_BYTES[capability]) as recorder:
        from pez_fast._cuda import nearest

        prepared = nearest.prepare(weight, ids)
        buffers = nearest.launch(x, weight, ids, prepared, found, similarity)
    return Search(x, weight, ids, prepared, found, similarity, tuple(buffers), recorder.launches)


def short(launch: Launch) -> str:
    return re.search(r"\d(nearest|splice)([a-z_0-9]*?)_kernel", launch.kernel)[0].lstrip("0123456789")


def integers(data: bytes, size: int = 4) -> list[int]:
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def matrix(tensor: torch.Tensor) -> list[int]:
    """The eight-byte words of a Matrix, without the type in the second word, behind which there is a gap."""
    return [tensor.data_ptr(), *tensor.shape, *tensor.stride()]


def words_of_matrix(data: bytes) -> list[int]:
    words = integers(data, 8)
    return [words[0], *words[2:]]


def check_query(s: Search, launch: Launch) -> None:
    n, width, rows = len(s.x), s.prepared[0].shape[1], 128 if len(s.x) <= 128 else 256 * -(-len(s.x) // 256)
    assert (launch.grid, launch.block, launch.shared_bytes) == ((rows // 4, 1, 1), (128, 1, 1), 0)
    assert not launch.overlaps and launch.cluster is None and launch.stream == STREAM
    x, *numbers = launch.arguments
    assert words_of_matrix(x) == matrix(s.x) and s.buffers[0].shape == (rows, width) and len(s.x) == n
    assert [int.from_bytes(one, "little") for one in numbers] == [width, rows, *(b.data_ptr() for b in s.buffers[:2])]


def check_decide(s: Search, launch: Launch, overlaps: bool) -> None:
    n, (unit, residual, norm) = len(s.x), s.prepared
    assert (launch.grid, launch.block, launch.shared_bytes) == ((-(-n // 4), 1, 1), (128, 1, 1), 0)
    assert launch.overlaps == overlaps and launch.cluster is None and launch.stream == STREAM
    given, out = launch.arguments
    assert words_of_matrix(given[:48]) == matrix(s.x)
    assert words_of_matrix(given[48:96]) == matrix(s.weight)
    query, rounded, keys, state = (one.data_ptr() for one in s.buffers)
    addresses = [unit.data_ptr(), residual.data_ptr(), query, rounded, keys]
    assert integers(given[96:160], 8) == [s.ids.data_ptr(), norm.data_ptr(), len(s.ids), *addresses]
    assert integers(given[160:168]) == [unit.shape[1], len(unit) // 128]
    assert integers(out, 8) == [s.found.data_ptr(), s.similarity.data_ptr(), state]


def check_few(s: Search, launch: Launch, room: int) -> None:
    width, tiles, rows = s.prepared[0].shape[1], len(s.prepared[0]) // 128, 16 if len(s.x) <= 16 else 32
    stages = next(c for c in (10, 6, 4, 3) if c * 16384 <= room - 32 * rows - rows * width * 2)
    assert f"ILi{rows}ELi{stages}EE" in launch.kernel
    assert (launch.grid, launch.block) == ((min(tiles, MULTIPROCESSORS), 1, 1), (256, 1, 1))
    assert launch.shared_bytes == rows * width * 2 + stages * 16384
    shape, *addresses = launch.arguments
    assert integers(shape) == [len(s.x), 128, width, tiles]
    expected = s.buffers[0], s.prepared[0], s.buffers[2]
    assert [int.from_bytes(one, "little") for one in addresses] == [one.data_ptr() for one in expected]


def check_many_ampere(s: Search, launch: Launch) -> None:
    width, tiles, row_tiles = s.prepared[0].shape[1], len(s.prepared[0]) // 128, -(-len(s.x) // 128)
    assert (launch.grid, launch.block) == ((row_tiles * tiles, 1, 1), (256, 1, 1))
    assert launch.shared_bytes == 3 * 2 * 128 * 64 * 2
    shape, *rest = launch.arguments
    assert integers(shape) == [len(s.x), len(s.buffers[0]), width, tiles]
    expected = [row_tiles, s.buffers[0].data_ptr(), s.prepared[0].data_ptr(), s.buffers[2].data_ptr()]
    assert [int.from_bytes(one, "little") for one in rest] == expected


def check_many_hopper(s: Search, launch: Launch) -> None:
    """300 queries are three tiles, an odd number: pairs of blocks share a tile of queries."""
    width, tiles = s.prepared[0].shape[1], len(s.prepared[0]) // 128
    assert (launch.grid, launch.block, launch.shared_bytes) == ((4, 1, 1), (384, 1, 1), 4 * 384 * 64 * 2 + 1024)
    *maps, scheduler, shape, keys = launch.arguments
    for data, tensor, rows in zip(maps, (s.buffers[0], s.prepared[0]), (64, 128), strict=True):
        expected = (tensor.data_ptr(), 2, (width, len(tensor)), (width * 2,), (64, rows), (1, 1), 128, 0, False)
        assert TensorMap.from_bytes(data) == TensorMap(*expected, "float16")
    assert integers(scheduler)[:2] == [3, 2] and scheduler[8] == 1
    assert integers(shape) == [len(s.x), len(s.buffers[0]), width, tiles]
    assert integers(keys, 8) == [s.buffers[2].data_ptr()]


def check(s: Search, capability: tuple[int, int]) -> None:
    assert len(s.launches) == 3
    query, scan, decide = s.launches
    assert (short(query), short(decide)) == ("nearest_query_kernel", "nearest_decide_kernel")
    check_query(s, query)
    overlaps = capability >= (9, 0)
    assert scan.overlaps == overlaps and scan.stream == STREAM and scan.cluster is None
    if len(s.x) <= 32:
        assert short(scan) == "nearest_few_kernel"
        check_few(s, scan, SHARED_BYTES[capability])
    elif capability == HOPPER:
        assert short(scan) == "nearest_scan_sm90_kernel"
        check_many_hopper(s, scan)
    else:
        assert short(scan) == "nearest_scan_sm80_kernel"
        check_many_ampere(s, scan)
    check_decide(s, decide, overlaps)


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize(("n", "d"), [(1, 64), (20, 100), (20, 200), (300, 64), (300, 200)])
def test_search(built, n, d, capability):
    check(search(built, n, d, capability), capability)


def test_types_choose_the_kernels(built):
    packed, strided = search(built, 20, 64, HOPPER), search(built, 20, 64, HOPPER, torch.float64)
    assert ["ILb1E" in packed.launches[0].kernel, "ILb1E" in strided.launches[0].kernel] == [True, False]
    assert ["IfE" in packed.launches[2].kernel, "IdE" in strided.launches[2].kernel] == [True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_splice_and_its_backward(built, dtype):
    template = torch.zeros(3, 9, 200, dtype=dtype).transpose(0, 1).contiguous().transpose(0, 1)
    hard, slots, owner = torch.zeros(2, 4, 200), torch.tensor([1, 2, 5, 8]), torch.tensor([1, 0, 1])
    with recording(built) as recorder:
        from pez_fast._cuda import splice

        out = splice.splice(template, hard, slots, owner)
        total = splice.splice_backward(template, slots, owner, 2)
    forward, backward = recorder.launches
    assert (short(forward), short(backward)) == ("splice_kernel", "splice_backward_kernel")
    assert (forward.grid, forward.block, backward.grid) == ((27, 1, 1), (128, 1, 1), (2 * 4 * 2, 1, 1))
    for launch, given in ((forward, hard.data_ptr()), (backward, 0)):
        words = integers(launch.arguments[0], 8)
        assert [words[0], *words[2:6]] == [template.data_ptr(), *template.stride(), given]
        assert words[7:] == [slots.data_ptr(), owner.data_ptr(), 3, 9, 200, 2, 4]
    assert integers(forward.arguments[1], 8) == [out.data_ptr()]
    assert [integers(one, 8)[0] for one in backward.arguments[1:]] == [template.data_ptr(), total.data_ptr()]


def test_what_was_replaced_is_back(built):
    pytest.importorskip("pez_fast._C_cuda")
    from pez_fast._cuda import nearest, splice

    names = "current_stream", "device_of", "get_device_capability"
    before = [getattr(torch.cuda, name) for name in names] + [nearest._C_cuda, splice._C_cuda]
    with recording(built), recording(built, AMPERE):
        pass
    assert [getattr(torch.cuda, name) for name in names] + [nearest._C_cuda, splice._C_cuda] == before
    assert nearest._slack.cache_info().currsize == 0


def test_the_ptx_has_every_kernel_that_is_launched(built):
    for architecture, cards in (("80", (AMPERE, GEFORCE)), ("90", (HOPPER,))):
        texts = built.ptx(architecture)
        assert set(texts) == {"query", "few", "scan_sm80", "decide", "splice"} | (
            {"scan_sm90"} if architecture == "90" else set()
        )
        sizes = {kernel.name: kernel.sizes for text in texts.values() for kernel in kernels(text)}
        for text in texts.values():
            assert re.search(rf"^\.target sm_{architecture}a?$", text, re.MULTILINE)
            assert f'.file\t1 "{ROOT}/csrc/' in text
        for launch in (one for card in cards for n in (20, 300) for one in search(built, n, 64, card).launches):
            assert [len(one) for one in launch.arguments] == sizes[launch.kernel]


def test_old_code_on_a_new_card_does_not_overlap(built):
    with recording(built, HOPPER, architecture="80") as recorder:
        from pez_fast._cuda import nearest

        x, ids = torch.ones(4, 64), torch.arange(64)
        nearest.nearest(x, torch.eye(64), ids, nearest.prepare(torch.eye(64), ids))
    assert [launch.overlaps for launch in recorder.launches] == [False] * 3


@pytest.mark.parametrize(
    ("n", "shared_bytes", "said"),
    [(300, 64 << 10, "nearest: invalid argument"), (0, 227 << 10, "nearest: invalid configuration argument")],
)
def test_refused(built, n, shared_bytes, said):
    """A scan that does not fit; a grid of no blocks. What was launched before stays."""
    with recording(built, AMPERE, shared_bytes=shared_bytes) as recorder:
        from pez_fast._cuda import nearest

        weight, ids = torch.eye(64), torch.arange(64)
        prepared = nearest.prepare(weight, ids)

        def call(rows: int) -> None:
            found = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
            nearest.launch(torch.ones(rows, 64), weight, ids, prepared, *found)

        with pytest.raises(RuntimeError, match=said):
            call(n)
        refused = [short(one) for one in recorder.launches]
        call(1)  # the error of the call before is not reported again
    assert refused == ["nearest_query_kernel", "nearest_few_kernel"][: 2 if n == 0 else 1]
    assert len(recorder.launches) == len(refused) + 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(v.count + kTile - 1) / kTile", "v.count / kTile"),
        ("round_queries(x, s, b, stream)", "round_queries(x, s, b, nullptr)"),
        ("decide_rows(x, v, p, s, b, out, card, stream)", "decide_rows(v.weight, v, p, s, b, out, card, stream)"),
    ],
)
def test_a_wrong_argument_is_seen(tmp_path, before, after):
    wrong = build(changed(tmp_path, "nearest.cu", before, after))
    with pytest.raises(AssertionError):
        check(search(wrong, 20, 100, HOPPER), HOPPER)
