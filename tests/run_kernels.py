"""Runs the project's own kernels on the PTX machine, as their launchers launch them, and prints the faults.

    python tests/run_kernels.py cuda --n 40 --tokens 300 --d 100
    python tests/run_kernels.py triton --kernel splice

A search is recorded (see kernel_runs.py), executed with many seeds, and its ids are compared with the oracle's.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cards import ADA, AMPERE, HOPPER, Card
from kernel_runs import Case, cuda_search, cuda_splice, cuda_splice_backward, triton_cases
from ptx.errors import MachineError
from ptx.names import readable
from ptx.report import (
    CommandLine,
    Report,
    UsageError,
    WrongResult,
    guarded,
    positive,
    print_faults,
    print_summary,
    run,
)
from recorded_cuda import Built, build, missing
from recorded_triton import Search, Splice, SpliceBackward
from torch import Tensor

from pez_fast import reference

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CARDS = {"9.0": HOPPER, "8.0": AMPERE, "8.9": ADA}
DATA = ("normal", "ties", "twins")
SPLICES = ("splice", "splice-backward")


@dataclass(frozen=True)
class Prepared:
    """A recorded call, the name of its result, and what the result must be; None where the last launch is left out."""

    case: Case
    result: str
    right: Tensor | None


def command_line() -> CommandLine:
    line = CommandLine("python tests/run_kernels.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    line.add_argument("implementation", choices=("cuda", "triton"))
    line.add_argument("--n", type=positive, default=40, help="queries of a search; prompts of a splice (40)")
    line.add_argument("--tokens", type=positive, default=300, help="rows of the table (300)")
    line.add_argument("--d", type=positive, default=100, help="elements of a row (100)")
    line.add_argument("--dtype", choices=DTYPES, default="float32")
    line.add_argument("--card", choices=CARDS, default="9.0", help="the card that is played, by its capability (9.0)")
    line.add_argument(
        "--kernel",
        metavar="NAME",
        help="splice or splice-backward; or the kernel of a search that is the last to run, such as scan_sm90",
    )
    line.add_argument(
        "--data",
        choices=DATA,
        default="normal",
        help="ties: many rows have equal cosines; twins: each token has an equal and a parallel one, some are banned",
    )
    line.add_argument("--csrc", type=folder, metavar="FOLDER", help="another csrc, such as a changed copy; for cuda")
    line.add_argument("--record", metavar="FILE", help="write what was found to this file, as JSON")
    line.add_seeds(100_000_000)
    return line


def folder(text: str) -> Path:
    if not (Path(text) / "cuda").is_dir():
        raise ArgumentTypeError(f"{text!r} is no folder with a folder cuda in it")
    return Path(text)


def searched(options: Namespace) -> tuple[Tensor, Tensor, list[int]]:
    """x (n, d), weight (tokens, d), and the banned tokens."""
    g, dtype = torch.Generator().manual_seed(0), DTYPES[options.dtype]
    n, v, d = options.n, options.tokens, options.d
    x, weight = torch.randn(n, d, generator=g), torch.randn(v, d, generator=g)
    banned: list[int] = []
    if options.data == "ties":
        rows = torch.randint(-2, 3, (max(1, v // 8), d), generator=g).float()
        weight = rows[torch.randint(len(rows), (v,), generator=g)] * torch.randint(1, 9, (v, 1), generator=g)
        x[: n // 2] = rows[torch.randint(len(rows), (n // 2,), generator=g)]
    elif options.data == "twins":
        rows = weight[: -(-v // 3)]
        weight = torch.cat([rows, rows, 2 * rows])[:v]
        banned = list(range(0, min(len(rows), v - 1), 2))
        x[: n // 2] = weight[torch.randint(v, (n // 2,), generator=g)]
    return x.to(dtype), weight.to(dtype), banned


def search(options: Namespace) -> Prepared:
    x, weight, banned = searched(options)
    ids = torch.tensor(sorted(set(range(len(weight))) - set(banned)))
    if options.implementation == "cuda":
        case = cuda_search(x, weight, ids, CARDS[options.card], built(options))
    else:
        (case,) = triton_cases([Search(x, weight, ids, card=triton_card(options))])
    if options.kernel is None:
        return Prepared(case, "found", reference.nearest_token(x, weight, banned)[0])
    last = [number for number, name in enumerate(case.kernels) if options.kernel in readable(name)]
    if not last:
        names = ", ".join([*map(readable, case.kernels), *SPLICES])
        raise UsageError(f"--kernel is {options.kernel}, but what runs here is {names}")
    if last[-1] == len(case.kernels) - 1:
        return Prepared(case, "found", reference.nearest_token(x, weight, banned)[0])
    return Prepared(Case(case.launches[: last[-1] + 1], case.memory, case.results), "", None)


def splice(options: Namespace) -> Prepared:
    """Half of n templates of 7 positions take their tokens at 3 of them from the other half of n prompts."""
    g, dtype = torch.Generator().manual_seed(0), DTYPES[options.dtype]
    prompts, templates = -(-options.n // 2), options.n
    slots, owner = torch.tensor([1, 2, 5]), torch.randint(prompts, (templates,), generator=g)
    template = torch.randn(templates, 7, options.d, generator=g).to(dtype)
    hard = torch.randn(prompts, 3, options.d, generator=g).to(dtype)
    if options.kernel == "splice":
        right, result = reference.splice(template, hard, slots, owner), "out"
        given: tuple = (template, hard, slots, owner)
        cuda, triton = cuda_splice, Splice
    else:
        given, result = (template, slots, owner, prompts), "total"
        right = gradient(template, hard, slots, owner)
        cuda, triton = cuda_splice_backward, SpliceBackward
    if options.implementation == "cuda":
        return Prepared(cuda(*given, CARDS[options.card], built(options)), result, right)
    return Prepared(triton_cases([triton(*given, card=triton_card(options))])[0], result, right)


def gradient(grad: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    """What the implementation in torch gives for the gradient of hard."""
    from pez_fast._torch import splice as plain

    return plain.splice_backward(grad, slots, owner, len(hard))


def built(options: Namespace) -> Built:
    if reason := missing():
        raise UsageError(f"implementation is cuda, which cannot be compiled here: {reason}")
    try:
        return build(options.csrc) if options.csrc else build()
    except RuntimeError as problem:
        raise UsageError(f"implementation is cuda, which does not compile:\n{problem}") from None


def triton_card(options: Namespace) -> Card:
    if options.csrc:
        raise UsageError(f"--csrc is {options.csrc}, but triton has no kernels there")
    return CARDS[options.card]


def once(prepared: Prepared, options: Namespace) -> Callable[[int], int]:
    """A run with a seed: the instructions executed, or a MachineError."""

    def with_seed(seed: int) -> int:
        ran = prepared.case.run(seed, options.style, options.limit)
        if prepared.right is None:
            return ran.executed
        try:
            found = ran[prepared.result]
        except RuntimeError as problem:
            raise WrongResult(f"no kernel complained, but {problem}") from None
        compare(found, prepared.right, prepared.result)
        return ran.executed

    return with_seed


def compare(found: Tensor, right: Tensor, name: str) -> None:
    if found.shape == right.shape and torch.equal(found, right):
        return
    different = (found != right).reshape(len(right), -1).any(1).nonzero()[:, 0].tolist()
    first = different[0]
    values = f"row {first} is {found[first].tolist()} and should be {right[first].tolist()}"
    raise WrongResult(
        f"no kernel complained, but {len(different)} of {len(right)} rows of {name} are wrong: {values}"[:300]
    )


def said(prepared: Prepared, report: Report) -> str:
    if report.faults:
        return ""
    if prepared.right is None:
        return "the last kernel did not run, so there is no result to compare"
    return "ids equal to the oracle's" if prepared.result == "found" else f"{prepared.result} equal to the reference's"


def record(path: str, options: Namespace, prepared: Prepared, report: Report) -> None:
    kept = {
        "options": {name: value for name, value in vars(options).items() if name != "record" and value is not None},
        "kernels": [readable(name) for name in prepared.case.kernels],
        "seeds": report.seeds,
        "faults": [asdict(fault) for fault in report.faults],
        "equal": prepared.right is not None and not report.faults,
        "instructions": {str(seed): executed for seed, executed in report.results.items()},
        "seconds": round(report.seconds, 1),
    }
    try:
        Path(path).write_text(json.dumps(kept, indent=1, default=str) + "\n")
    except OSError as problem:
        raise UsageError(f"--record is {path}, which cannot be written: {problem.strerror}") from None


def command(texts: list[str] | None = None) -> int:
    options = command_line().parse_args(texts)
    torch.set_num_threads(1)
    try:
        prepared = splice(options) if options.kernel in SPLICES else search(options)
    except (ValueError, RuntimeError, MachineError) as problem:
        raise UsageError(f"these kernels cannot be launched: {problem}") from None
    sizes = f"n {options.n}, tokens {options.tokens}, d {options.d}, {options.dtype}, {options.data}"
    names = ", ".join(readable(name) for name in prepared.case.kernels)
    print(f"{options.implementation}, card {options.card}, {sizes}: {names}\n")
    report = run(options, once(prepared, options))
    print_faults(report)
    print_summary(report, list(report.results.values()))
    if text := said(prepared, report):
        print(text)
    if options.record:
        record(options.record, options, prepared, report)
    return report.code


def main(texts: Any = None) -> int:
    return guarded("run_kernels.py", lambda: command(texts))


if __name__ == "__main__":
    sys.exit(main())
