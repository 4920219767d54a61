"""What every kernel must do on the PTX machine: a recorded case of each, and a check of what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from cards import AMPERE, HOPPER, Card
from kernel_runs import Case, Ran, cuda_search, cuda_splice, cuda_splice_backward, triton_cases
from ptx_cases import DECISIONS, EVERY, SCANS, SEARCHES, SPLICES, oracle
from recorded_triton import Search, Splice, SpliceBackward
from scanned_keys import cuda_keys, triton_keys
from tolerances import SIMILARITY


@dataclass
class Check:
    """`check(seed)` runs the case under that schedule; an AssertionError or a MachineError says what is wrong."""

    make: Callable[[], Case]
    look: Callable[[Ran], None]

    @cached_property
    def case(self) -> Case:
        return self.make()

    def __call__(self, seed: int, style: str | None = None) -> Ran:
        ran = self.case.run(seed, style)
        self.look(ran)
        return ran


def as_the_oracle(name: str, ran: Ran) -> None:
    """Ids, cosines, and that the rows were decided in the ways that the inputs are made for."""
    found, similarity = oracle(name)
    assert ran["found"].tolist() == found.tolist()
    torch.testing.assert_close(ran["similarity"].double(), similarity, rtol=0, atol=SIMILARITY, equal_nan=True)
    assert set(EVERY[name]().states) <= set(ran["state"].tolist())


def copied(expected: torch.Tensor, name: str, ran: Ran) -> None:
    assert torch.equal(ran[name], expected)


def scan_alone(case: Case) -> Case:
    """The scan, behind one run of the kernel that rounds the queries."""
    return case.only("scan").behind(case.only("query").run(0))


def decision_alone(case: Case, keys: Callable[[Ran], torch.Tensor]) -> Case:
    """The decision, behind the queries and keys that the host computes."""
    rounded = case.only("query").run(0)
    return case.only("decide").behind(rounded).filled("keys", keys(rounded))


# CUDA


def cuda_case(name: str) -> Case:
    inputs = EVERY[name]()
    return cuda_search(inputs.x, inputs.weight, inputs.ids, inputs.card)


def cuda_keys_of(name: str, ran: Ran) -> torch.Tensor:
    inputs = EVERY[name]()
    return cuda_keys(ran["query"], ran["unit"], len(inputs.x), inputs.card.capability)


def cuda_keys_as_the_host(name: str, ran: Ran) -> None:
    """The keys of the scan, to the bit."""
    assert torch.equal(ran["keys"].view(torch.int32), cuda_keys_of(name, ran).view(torch.int32))


def cuda_searched(name: str, ran: Ran) -> None:
    as_the_oracle(name, ran)
    cuda_keys_as_the_host(name, ran)


def cuda_spliced(name: str) -> Case:
    s = SPLICES[name]()
    return cuda_splice(s.template, s.hard, s.slots, s.owner)


def cuda_backward(name: str) -> Case:
    s = SPLICES[name]()
    return cuda_splice_backward(s.template, s.slots, s.owner, len(s.hard))


CUDA = {name: Check(partial(cuda_case, name), partial(cuda_searched, name)) for name in SEARCHES}
CUDA |= {
    f"scan: {name}": Check(lambda name=name: scan_alone(cuda_case(name)), partial(cuda_keys_as_the_host, name))
    for name in SCANS
}
CUDA |= {
    f"decision: {name}": Check(
        lambda name=name: decision_alone(cuda_case(name), partial(cuda_keys_of, name)), partial(as_the_oracle, name)
    )
    for name in DECISIONS
}
for _name, _make in SPLICES.items():
    CUDA[f"splice: {_name}"] = Check(partial(cuda_spliced, _name), partial(copied, _make().expected, "out"))
    CUDA[f"backward: {_name}"] = Check(
        partial(cuda_backward, _name), partial(copied, _make().expected_backward, "total")
    )


# Triton


TWO = Card((9, 0), multiprocessors=2, shared_bytes=227 << 10)
TRITON_SEARCHES = {  # name of the inputs: fields of the scan, or None for the default; the card
    "few, 32 rows": (None, HOPPER),
    "few, wide": (None, HOPPER),
    "many": (None, HOPPER),  # 64 rows, still one tile
    "twins": (None, HOPPER),
    "twins in float64": (None, HOPPER),
    "twins in a transposed table": (None, HOPPER),
    "exact ties": (None, HOPPER),
    "not finite": (None, HOPPER),
    "one token": (None, HOPPER),
    "few on Ampere": (None, AMPERE),
}
TRITON_SCANS = {
    "two row tiles": (None, TWO),
    "three row tiles": ({"block_n": 128, "block_v": 128, "warps": 4, "stages": 3, "descriptor": True}, HOPPER),
    "two row tiles on Ampere": (None, AMPERE),
}
TRITON_DECISIONS = {name: (None, HOPPER) for name in DECISIONS}
TRITON_CASES = TRITON_SEARCHES | TRITON_SCANS | TRITON_DECISIONS
TRITON_SPLICES = ("float32", "float16", "bfloat16", "more slots than threads", "more rows than lanes")


def triton_request(name: str) -> Search:
    scan, card = TRITON_CASES[name]
    inputs = EVERY[name]()
    return Search(inputs.x, inputs.weight, inputs.ids, scan, card)


@cache
def triton_recorded() -> dict[str, Case]:
    """All cases, recorded in one child process."""
    requests = {name: triton_request(name) for name in TRITON_CASES}
    for name in TRITON_SPLICES:
        s = SPLICES[name]()
        requests[f"splice: {name}"] = Splice(s.template, s.hard, s.slots, s.owner)
        requests[f"backward: {name}"] = SpliceBackward(s.template, s.slots, s.owner, len(s.hard))
    return dict(zip(requests, triton_cases(list(requests.values())), strict=True))


def triton_keys_of(name: str, ran: Ran) -> torch.Tensor:
    _, card = TRITON_CASES[name]
    values, shape = ran.case.values, ran.case.results["keys"].shape
    return triton_keys(ran["query"], ran["unit"], *shape, values["BLOCK_V"], values["GROUP_SIZE"], card.capability)


def triton_keys_as_the_host(name: str, ran: Ran) -> None:
    """The keys of the scan, to the bit."""
    assert torch.equal(ran["keys"], triton_keys_of(name, ran))


def triton_searched(name: str, ran: Ran) -> None:
    as_the_oracle(name, ran)
    triton_keys_as_the_host(name, ran)


TRITON = {
    name: Check(lambda name=name: triton_recorded()[name], partial(triton_searched, name)) for name in TRITON_SEARCHES
}
TRITON |= {
    f"scan: {name}": Check(
        lambda name=name: scan_alone(triton_recorded()[name]), partial(triton_keys_as_the_host, name)
    )
    for name in TRITON_SCANS
}
TRITON |= {
    f"decision: {name}": Check(
        lambda name=name: decision_alone(triton_recorded()[name], partial(triton_keys_of, name)),
        partial(as_the_oracle, name),
    )
    for name in TRITON_DECISIONS
}
for _name in TRITON_SPLICES:
    for _kind, _result, _expected in (
        ("splice", "out", SPLICES[_name]().expected),
        ("backward", "total", SPLICES[_name]().expected_backward),
    ):
        TRITON[f"{_kind}: {_name}"] = Check(
            lambda name=f"{_kind}: {_name}": triton_recorded()[name], partial(copied, _expected, _result)
        )
