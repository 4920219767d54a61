"""The same launches on a card and on the PTX machine: whether both give the same bits. Needs a GPU, nvcc and the tests.

    python benchmarks/ptx_on_card.py --impl cuda --out benchmarks/results/ptx_on_card.json

It takes the inputs of tests/ptx_cases.py. The queries, the keys of the scan, ids, states and similarities of csrc/cuda
are compared with what the machine computes from the recorded launches; ids and keys of kernels/triton with the oracle
and the host's sums, which the machine equals in the tests. With --device cpu the machine is compared with itself under
another schedule, to see that the script runs. Exits with 1 if ids, states, queries or keys differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from provenance import write
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cards import Card
from kernel_runs import cuda_search
from ptx_cases import SCANS, SEARCHES, Inputs, oracle
from scanned_keys import triton_keys

MUST = ("found", "state", "query", "keys")  # the rest is shown
Stages = dict[str, Tensor]


def on_machine(inputs: Inputs, capability: tuple[int, int], seed: int) -> Stages:
    """What the kernels leave on the machine, which plays a card of this capability."""
    ran = cuda_search(inputs.x, inputs.weight, inputs.ids, Card(capability)).run(seed)
    return {name: ran[name] for name in ("found", "similarity", "state", "query", "keys")}


def on_card(inputs: Inputs) -> Stages:
    from pez_fast._cuda import nearest

    x, weight, ids = (t.cuda() for t in (inputs.x, inputs.weight, ids_of(inputs)))
    found = nearest.stages(x, weight, ids, nearest.prepare(weight, ids))
    return {name: found[name].cpu() for name in ("found", "similarity", "state", "query", "keys")}


def ids_of(inputs: Inputs) -> Tensor:
    return torch.arange(len(inputs.weight)) if inputs.ids is None else inputs.ids


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def compared(name: str, first: Stages, second: Stages) -> dict[str, Any]:
    """How many elements of each stage differ in their bits; of rows that both must write."""
    rows = len(first["found"])
    differ = {
        stage: int(
            (bits(first[stage][:rows]) != bits(second[stage][:rows])).view(-1, first[stage].itemsize).any(-1).sum()
        )
        for stage in first
    }
    return {"inputs": name, "rows": rows, "differ": differ, "equal": not any(differ[stage] for stage in MUST)}


def cuda(card: bool, capability: tuple[int, int]) -> Iterator[dict[str, Any]]:
    for name, make in (SEARCHES | SCANS).items():
        inputs = make()
        if inputs.card.capability != (9, 0) or len(inputs.x) > 300:
            continue  # inputs for other cards' kernels, or for the scan alone
        machine = on_machine(inputs, capability, 0)
        yield compared(name, machine, on_card(inputs) if card else on_machine(inputs, capability, 1))


def triton(card: bool, capability: tuple[int, int]) -> Iterator[dict[str, Any]]:
    from pez_fast._triton import nearest, tune

    for name, make in SEARCHES.items() if card else ():
        inputs = make()
        x, weight, ids = (t.cuda() for t in (inputs.x, inputs.weight, ids_of(inputs)))
        prepared = nearest.prepare(weight, ids)
        scan = tune.candidates(capability, len(x))[0]
        query = nearest.queries(x, prepared[0].shape[1]).query
        keys = nearest.scan_keys(query, prepared[0], len(x), len(ids), scan).cpu()
        found = nearest.nearest(x, weight, ids, prepared)[0].cpu()
        sizes = *keys.shape, scan.block_v, tune.group_size(len(x))
        host = triton_keys(query.cpu(), prepared[0].cpu(), *sizes, capability)
        wrong = {"found": int((found != oracle(name)[0]).sum()), "keys": int((keys != host).sum())}
        yield {"inputs": name, "rows": len(x), "differ": wrong, "equal": not any(wrong.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", choices=("cuda", "triton"), default="cuda")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cases", type=int, help="only so many")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    card = args.device == "cuda"
    if card and not torch.cuda.is_available():
        parser.error("--device is cuda, and torch finds no GPU here; --device cpu rehearses")
    capability = torch.cuda.get_device_capability() if card else (9, 0)
    found: list[dict[str, Any]] = []
    for one in islice({"cuda": cuda, "triton": triton}[args.impl](card, capability), args.cases):
        found.append(one)
        print(one, flush=True)
        if args.out:
            write(args.out, {"card": card, "cases": found}, final=False)
    unequal = [one["inputs"] for one in found if not one["equal"]]
    print(f"{len(found)} cases, {len(unequal)} of which differ", *unequal, sep="\n  ")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
