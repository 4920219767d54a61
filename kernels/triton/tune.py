"""The tile sizes of the scan: a default for each chip, or the fastest candidate that was timed.

With PEZ_FAST_AUTOTUNE=1 the first search of a kind times the candidates and stores the winner in a file. Later searches
read the file, with or without the variable. A candidate that fails is left out.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import triton

FEW = 128  # up to so many rows fit into one tile of queries, so that the table is read once
WIDTH = 64  # prepared rows are padded to a multiple of so many elements
INTERPRETED = bool(triton.knobs.runtime.interpret)  # the interpreter is fastest with few programs
TILE = 512 if INTERPRETED else 256  # the prepared table is padded to a multiple of so many tokens
# Whether the decision over narrow types fits into 128 registers; the code of earlier versions spills there.
FITS_128 = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)


@dataclass(frozen=True)
class Scan:
    """Tiles of block_n rows by block_v tokens, block_k elements at a time, in `stages` stages, by `warps` warps."""

    block_n: int
    block_v: int
    block_k: int = 64
    warps: int = 4
    stages: int = 3
    swizzle: int = 16  # row tiles in succession over one tile of tokens, for the L2 cache
    descriptor: bool = False  # the tensor memory accelerator loads the tiles (from 9.0 on)
    persistent: bool = False  # one program for each multiprocessor instead of one for each tile
    flatten: bool = False  # persistent, with its two loops flattened into one

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that the stages take."""
        return 2 * self.stages * self.block_k * (self.block_n + self.block_v)


def shared_limit(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a program may use."""
    return {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}.get(capability, 99) * 1024


def block_of_rows(n: int) -> int:
    """The tile that holds n <= FEW rows."""
    return max(16, triton.next_power_of_2(n))


def group_size(n: int) -> int:
    """Tokens that share a key: with many rows the scan's epilogue takes longest, with few the decision."""
    return 1 if n <= FEW else 4


def candidates(capability: tuple[int, int], n: int) -> list[Scan]:
    """The configurations worth timing, the default first."""
    hopper = capability >= (9, 0) and shared_limit(capability) > 99 * 1024
    if n <= FEW:
        rows = block_of_rows(n)
        warps = 8 if rows >= 64 else 4
        choices = [
            Scan(rows, 128, warps=warps, stages=4 if rows < 128 else 3, descriptor=hopper),
            Scan(rows, 128, warps=warps, stages=3, descriptor=hopper),
            Scan(rows, 128, warps=warps, stages=6, descriptor=hopper),
            Scan(rows, 256, warps=8, stages=3, descriptor=hopper),
            Scan(rows, 64, stages=4, descriptor=hopper),
            Scan(rows, 128, warps=warps, stages=4),
            Scan(rows, 128, warps=warps, stages=2),
        ]
    elif hopper:
        choices = [
            Scan(128, 256, warps=8, stages=4, descriptor=True, persistent=True),
            Scan(128, 256, warps=8, stages=4, descriptor=True, persistent=True, flatten=True),
            Scan(128, 256, warps=8, stages=3, descriptor=True, persistent=True, flatten=True),
            Scan(128, 256, warps=8, stages=3, descriptor=True),
            Scan(128, 256, warps=8, stages=4, swizzle=8, descriptor=True),
            Scan(128, 128, warps=4, stages=3, descriptor=True),
            Scan(128, 128, warps=8, stages=3, descriptor=True),
            Scan(256, 128, warps=8, stages=4, descriptor=True, persistent=True),
            Scan(128, 256, warps=8, stages=3),
            Scan(128, 128, warps=4, stages=3),
        ]
    else:
        choices = [
            Scan(128, 256, warps=8, stages=3),
            Scan(128, 128, warps=4, stages=3),
            Scan(128, 128, block_k=32, warps=4, stages=4),
            Scan(128, 128, block_k=32, warps=8, stages=4),
            Scan(64, 128, block_k=32, warps=4, stages=4),
        ]
    fitting = [c for c in choices if c.shared_bytes <= shared_limit(capability)]
    return list(dict.fromkeys(fitting))


def configuration(device: torch.device, n: int, d: int, tokens: int, launch: Callable[[Scan], object]) -> Scan:
    """The configuration for n rows and a table of `tokens` rows of d elements; `launch` runs the scan in one."""
    if INTERPRETED:
        return Scan(block_of_rows(n) if n <= FEW else 128, TILE)
    choices = candidates(capability(device), n)
    sizes = f"n {triton.next_power_of_2(n)}, d {d}, v {triton.next_power_of_2(tokens)}"
    key = f"{_device_name(device)}, triton {triton.__version__}, {sizes}"
    stored = _stored(str(_path()))
    if (
        key not in stored
        and os.environ.get("PEZ_FAST_AUTOTUNE") == "1"
        and not torch.cuda.is_current_stream_capturing()
    ):
        fastest = _fastest(choices, launch)
        if fastest:
            _store(key, fastest)
    found = stored.get(key)
    # A file may have been written by another release.
    return found if found in choices else choices[0]


@cache
def capability(device: torch.device) -> tuple[int, int]:
    return (8, 0) if INTERPRETED else torch.cuda.get_device_capability(device)


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _fastest(choices: list[Scan], launch: Callable[[Scan], object]) -> Scan | None:
    """The choice whose launch takes the least time, of those that can be compiled and launched."""
    times: dict[Scan, float] = {}
    for choice in choices:
        try:
            times[choice] = _milliseconds(lambda choice=choice: launch(choice))
        except Exception as problem:  # Triton, ptxas and the driver have no error in common
            warnings.warn(f"{choice} cannot be timed and is left out: {problem}".splitlines()[0], stacklevel=2)
    return min(times, key=times.__getitem__, default=None)


def _milliseconds(run: Callable[[], object], times: int = 20) -> float:
    """The median time of a run on the current stream."""
    for _ in range(3):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    for begun, ended in events:
        begun.record()
        run()
        ended.record()
    torch.cuda.current_stream().synchronize()
    return statistics.median(begun.elapsed_time(ended) for begun, ended in events)


def _path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pez_fast" / "triton.json"


@cache
def _stored(path: str) -> dict[str, Scan]:
    """The contents of the file, read once in each process; empty if it cannot be read."""
    try:
        return {key: Scan(**value) for key, value in json.loads(Path(path).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _store(key: str, choice: Scan) -> None:
    path = _path()
    known = _stored(str(path))
    known[key] = choice
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump({k: asdict(v) for k, v in known.items()}, file, indent=1)
    os.replace(file.name, path)
