"""The Triton kernels as compiled for sm_90, executed on the PTX machine under several schedules each."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest
import torch
from kernel_runs import Case, Ran, triton_cases
from ptx_cases import SCANS, SEARCHES, SPLICES, assert_as_the_oracle
from recorded_triton import AMPERE, HOPPER, Card, Search, Splice, SpliceBackward
from scanned_keys import triton_keys

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8):
    pytest.skip(f"Triton {triton.__version__} launches kernels in another way", allow_module_level=True)

SEEDS = range(5)
FEWER = Card((9, 0), multiprocessors=2, shared_bytes=227 << 10)
SEARCHED = {  # name of the inputs; fields of the scan, or None for the default; the card
    "few, 32 rows": (None, HOPPER),
    "few, wide": (None, HOPPER),
    "many": (None, HOPPER),  # of 64 rows, still one tile
    "twins": (None, HOPPER),
    "twins in float64": (None, HOPPER),
    "twins in a transposed table": (None, HOPPER),
    "exact ties": (None, HOPPER),
    "not finite": (None, HOPPER),
    "one token": (None, HOPPER),
    "few on Ampere": (None, AMPERE),
}
SCANNED = {
    "two row tiles": (None, FEWER),
    "three row tiles": ({"block_n": 128, "block_v": 128, "warps": 4, "stages": 3, "descriptor": True}, HOPPER),
    "two row tiles on Ampere": (None, AMPERE),
}
SPLICED = ("float32", "float16", "bfloat16", "more slots than threads", "more rows than lanes")


def request_of(name: str) -> Search:
    scan, card = (SEARCHED | SCANNED)[name]
    inputs = (SEARCHES | SCANS)[name]()
    return Search(inputs.x, inputs.weight, inputs.ids, scan, card)


@cache
def cases() -> dict[str, Case]:
    """All recordings, made in one child process."""
    requests = {name: request_of(name) for name in (*SEARCHED, *SCANNED)}
    for name in SPLICED:
        s = SPLICES[name]()
        requests[f"splice {name}"] = Splice(s.template, s.hard, s.slots, s.owner)
        requests[f"backward {name}"] = SpliceBackward(s.template, s.slots, s.owner, len(s.hard))
    return dict(zip(requests, triton_cases(list(requests.values())), strict=True))


def check_keys(name: str, ran: Ran) -> None:
    """The keys of the scan, to the bit: as the host adds."""
    _, card = (SEARCHED | SCANNED)[name]
    keys, values = ran["keys"], ran.case.values
    expected = triton_keys(
        ran["query"], ran["unit"], *keys.shape, values["BLOCK_V"], values["GROUP_SIZE"], card.capability
    )
    assert torch.equal(keys, expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SEARCHED)
def test_search(name, seed):
    ran = cases()[name].run(seed)
    assert_as_the_oracle(name, ran)
    assert set(SEARCHES[name]().states) <= set(ran["state"].tolist())
    check_keys(name, ran)


@pytest.mark.parametrize("name", SCANNED)
def test_scan(name):
    """Many rows: the queries once, then the scan alone, under every schedule."""
    rounded = cases()[name].only("query").run(0)
    scan = cases()[name].only("scan").behind(rounded)
    for seed in SEEDS:
        check_keys(name, scan.run(seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SPLICED)
def test_splice(name, seed):
    given = SPLICES[name]()
    assert torch.equal(cases()[f"splice {name}"].run(seed)["out"], given.expected)
    assert torch.equal(cases()[f"backward {name}"].run(seed)["total"], given.expected_backward)


def test_every_kernel_runs():
    """Both scans, with wgmma and bulk copies; the decision; the splices."""
    launches = [(launch.kernel, text) for case in cases().values() for text, launch in case.launches]
    scans = [text for kernel, text in launches if "scan" in kernel and "sm_90a" in text]
    assert all("wgmma.mma_async" in text and "cp.async.bulk.tensor" in text for text in scans) and scans
    words = ("query", "scan_few", "scan_many", "decide", "splice_kernel", "splice_backward")
    assert [word for word in words if not any(word in kernel for kernel, _ in launches)] == []
