"""Holds other people's lines for the same question, each as its authors would write it.

The benchmark holds the search against these lines.

Every baseline takes a table weight (V, d) and queries x (N, d), both float32. It prepares what a user may prepare once,
and gives the call that is timed. The call returns ids (N,), or None where it computes less than the ids. Whatever
depends on the queries alone is part of the call. None of the baselines is exact; the benchmark counts their wrong ids
beside their time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

Call = Callable[[], Tensor | None]
# A baseline writes so many scores at once. It takes more queries in parts, as anyone would.
SCORES = {"cpu": 1 << 28, "cuda": 1 << 32}


@dataclass(frozen=True)
class Baseline:
    """Says how the call is built, what it needs, and how many bytes it reads for one element of the table."""

    build: Callable[[Tensor, Tensor], Call]
    scan_bytes: int
    needs: tuple[str, ...]
    devices: tuple[str, ...]
    most_rows: int | None

    @property
    def whose(self) -> str:
        return " ".join((self.build.__doc__ or "").split())

    def unavailable(self, device: str) -> str | None:
        """Says why the baseline cannot run on this device; returns None where it can."""
        if device not in self.devices:
            return f"runs on {' and '.join(self.devices)} alone"
        for name in self.needs:
            if name == "c++":
                if device == "cpu" and not (shutil.which("c++") or shutil.which("g++")):
                    return "torch.compile needs a C++ compiler here"
                continue
            try:
                import_module(name)
            except ImportError as e:
                return f"{name} cannot be imported: {str(e).splitlines()[0]}"
        return None


BASELINES: dict[str, Baseline] = {}


def baseline(
    name: str,
    scan_bytes: int = 4,
    needs: tuple[str, ...] = (),
    devices: tuple[str, ...] = ("cpu", "cuda"),
    most_rows: int | None = None,
) -> Callable[[Callable[[Tensor, Tensor], Call]], Callable[[Tensor, Tensor], Call]]:
    def add(build: Callable[[Tensor, Tensor], Call]) -> Callable[[Tensor, Tensor], Call]:
        BASELINES[name] = Baseline(build, scan_bytes, needs, devices, most_rows)
        return build

    return add


def usable_baselines(device: str, names: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """Returns those of the names (None: of all) that this device can run, and why it cannot run the others."""
    reasons = {name: BASELINES[name].unavailable(device) for name in (BASELINES if names is None else names)}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    return [name for name in reasons if name not in left_out], left_out


def _naive(x: Tensor, weight: Tensor) -> Tensor:
    return (F.normalize(x, dim=-1) @ F.normalize(weight, dim=-1).T).argmax(-1)


def _cached(x: Tensor, unit: Tensor) -> Tensor:
    return (F.normalize(x, dim=-1).to(unit.dtype) @ unit.T).argmax(-1)


def _in_parts(lines: Callable[[Tensor, Tensor], Tensor], x: Tensor, table: Tensor) -> Call:
    parts = x.split(max(1, SCORES[x.device.type] // len(table)))
    if len(parts) == 1:
        return lambda: lines(x, table)
    return lambda: torch.cat([lines(part, table) for part in parts])


@baseline("naive")
def naive(weight: Tensor, x: Tensor) -> Call:
    """Runs the three lines of the README: every call normalises queries and table, and writes the scores out."""
    return _in_parts(_naive, x, weight)


@baseline("original", needs=("sentence_transformers",), most_rows=4096)
def original(weight: Tensor, x: Tensor) -> Call:
    """Runs the projection of the published PEZ code.

    Every call normalises the table, then calls `semantic_search` of sentence-transformers."""
    util = import_module("sentence_transformers.util")

    def search() -> Tensor:
        q, e = util.normalize_embeddings(x), util.normalize_embeddings(weight)
        hits = util.semantic_search(q, e, query_chunk_size=len(q), top_k=1, score_function=util.dot_score)
        return torch.tensor([hit[0]["corpus_id"] for hit in hits], device=x.device)

    return search


@baseline("cached-fp32")
def cached_fp32(weight: Tensor, x: Tensor) -> Call:
    """Runs the naive lines with the table normalised once, in float32."""
    return _in_parts(_cached, x, F.normalize(weight, dim=-1))


@baseline("cached-tf32", devices=("cuda",))
def cached_tf32(weight: Tensor, x: Tensor) -> Call:
    """Runs cached-fp32 with its products in TF32."""
    run = cached_fp32(weight, x)

    def search() -> Tensor | None:
        with _tf32():
            return run()

    return search


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@baseline("cached-bf16", scan_bytes=2)
def cached_bf16(weight: Tensor, x: Tensor) -> Call:
    """Runs cached-fp32 with queries and table rounded to bfloat16."""
    return _in_parts(_cached, x, F.normalize(weight, dim=-1).bfloat16())


@baseline("compiled-naive", needs=("c++",))
def compiled_naive(weight: Tensor, x: Tensor) -> Call:
    """Runs torch.compile of the naive lines."""
    torch._dynamo.reset()
    return _in_parts(torch.compile(_naive, dynamic=False), x, weight)


@baseline("compiled-cached", needs=("c++",))
def compiled_cached(weight: Tensor, x: Tensor) -> Call:
    """Runs torch.compile of the lines with the table normalised once, in float32."""
    torch._dynamo.reset()
    return _in_parts(torch.compile(_cached, dynamic=False), x, F.normalize(weight, dim=-1))


@baseline("faiss", needs=("faiss",))
def faiss_flat(weight: Tensor, x: Tensor) -> Call:
    """Searches `IndexFlatIP` of faiss over the unit rows.

    On a GPU the search needs a faiss with GPU support, which then holds arrays of its own."""
    faiss = import_module("faiss")
    index = faiss.IndexFlatIP(weight.shape[1])
    if weight.device.type == "cuda":
        if not hasattr(faiss, "StandardGpuResources"):
            raise RuntimeError("this faiss has no GPU support")
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
    index.add(F.normalize(weight, dim=-1).cpu().numpy())
    return lambda: torch.from_numpy(index.search(F.normalize(x, dim=-1).cpu().numpy(), 1)[1][:, 0]).to(x.device)


@baseline("flash-kmeans", scan_bytes=2, needs=("flash_kmeans.assign_euclid_triton",), devices=("cuda",))
def flash_kmeans(weight: Tensor, x: Tensor) -> Call:
    """Runs `cosine_assign_triton`, the assignment step of flash-kmeans.

    It is a fused scan in float16, which writes no scores out and rescores nothing."""
    assign = import_module("flash_kmeans.assign_euclid_triton").cosine_assign_triton
    centroids = F.normalize(weight, dim=-1).half()[None]
    return lambda: assign(F.normalize(x, dim=-1).half()[None], centroids)[0].long()


@baseline("cuvs", needs=("cuvs.neighbors.brute_force",), devices=("cuda",))
def cuvs(weight: Tensor, x: Tensor) -> Call:
    """Runs `brute_force.search` of NVIDIA's cuVS by inner product over the unit rows."""
    brute_force = import_module("cuvs.neighbors.brute_force")
    index = brute_force.build(F.normalize(weight, dim=-1), metric="inner_product")

    def search() -> Tensor:
        found = brute_force.search(index, F.normalize(x, dim=-1), 1)[1]
        return torch.as_tensor(found, device=x.device)[:, 0].long()

    return search


@baseline("cublas-fp16", scan_bytes=2, devices=("cuda",))
def cublas_alone(weight: Tensor, x: Tensor) -> Call:
    """Runs cuBLAS's product alone, in float16, on unit rows that are ready.

    The call normalises nothing, takes no argmax and returns no ids. It is the line to beat."""
    q, table = F.normalize(x, dim=-1).half(), F.normalize(weight, dim=-1).half()

    def product() -> None:
        for part in q.split(SCORES["cuda"] // len(table)):
            part @ table.T

    return product
