"""The steps of hardware.py that measure: searches, splices, graphs, kernels, whole steps, quality.

Each implementation is measured in processes of its own, and so are the baselines. A step yields its results piece by
piece, each with a name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from session import LEAST, Session, fault

Pieces = Iterator[tuple[str, Any]]
FULL, TINY = (49_408, 1024), (512, 64)  # tokens and width of the targets, and of a rehearsal
TARGETS = {16: 0.029, 1024: 0.130, 4096: 0.55, 65536: 9.0}  # rows: milliseconds on an H200 for a table of that size
ALSO = [8, 64, 128, 256]  # further numbers of rows to measure
TURNS = [8, 16, 64, 128, 256, 1024]  # numbers of rows whose calls are short beside a launch
BASELINES = ["cached-fp32", "cached-tf32", "cached-bf16", "cublas-fp16", "naive"]
MORE_BASELINES = ["original", "compiled-naive", "compiled-cached", "faiss", "flash-kmeans", "cuvs", "cached-fp32"]
SHAPES = ["49408x512", "49408x768", "49408x1280", "50257x1280", "152064x3584"]
RESTARTS = 3  # processes for a list of cases if some cases end their process


def size_of(s: Session) -> tuple[int, int]:
    return TINY if s.rehearse else FULL


def shape_of(s: Session) -> str:
    return "{}x{}".format(*size_of(s))


def searches(s: Session, impl: str, rows: list[int], turns: list[int], seconds: float, **env: str) -> dict[str, Any]:
    """The times of searches of these numbers of rows; a case that ends its process is left out."""
    left, cases, faults, end = list(rows), [], {}, s.left() - seconds
    answer: dict[str, Any] = {}
    for _ in range(RESTARTS):
        given = ["--shapes", shape_of(s), "--rows", *left, "--rotate", *turns, "--seconds", each_case(s)]
        answer = s.child("search", "--impl", impl, *given, seconds=s.left() - end, **env)
        found = answer.pop("results", [])
        cases += found
        reason = fault(answer)
        done = {case["rows"] for case in found}
        here = next((n for n in left if n not in done), None) if reason else None
        if reason and "skipped" not in answer:
            faults[str(here or left[-1])] = reason
        left = left[left.index(here) + 1 :] if here else []
        if not left or "skipped" in answer:
            break
    return answer | {"results": {"cases": cases}} | ({"faults": faults} if faults else {})


def baselines(s: Session, shapes: list[str], rows: list[int], names: list[str], seconds: float) -> dict[str, Any]:
    """nearest.py without our implementations; it begins no case that would leave no time to write the results."""
    seconds = min(seconds, s.left() - LEAST)
    options = ["--budget", max(1.0, seconds - 15), "--seconds", each_case(s)]
    # On a CPU one more process for each case measures memory.
    options += ["--memory-rows", *([] if s.rehearse else rows), "--impls", "--baselines", *names]
    return s.script("nearest", "--shapes", *shapes, "--rows", *rows, *options, seconds=seconds)


def each_case(s: Session) -> float:
    """Seconds for the repetitions of a case."""
    return 0.02 if s.rehearse else 0.2


def nearest(s: Session) -> Pieces:
    """The shape that has targets."""
    rows, turns = ([4, 16], [4]) if s.rehearse else ([*TARGETS, *ALSO], TURNS)
    yield from s.each(lambda impl: searches(s, impl, rows, turns, 90))
    yield "baselines", baselines(s, [shape_of(s)], rows, BASELINES, 60)


def splice(s: Session) -> Pieces:
    yield from s.each(lambda impl: s.child("splices", "--impl", impl, "--seconds", each_case(s), seconds=30))


def graphs(s: Session) -> Pieces:
    tiny = ["--tiny"] if s.rehearse else []
    yield from s.each(lambda impl: s.script("captured", "--impls", impl, *tiny, seconds=40), gpu=True)


def kernels(s: Session) -> Pieces:
    """The time of each kernel of a search, as the profiler sees it."""
    given = ["--shapes", shape_of(s), "--rows", *([4] if s.rehearse else [16, 128, 1024, 4096, 65536])]
    yield from s.each(lambda impl: s.child("kernels", "--impl", impl, *given, seconds=45))


def second_try(s: Session) -> Pieces:
    """Struck implementations, one process for each number of rows: one of several code paths may work."""
    rows = [16] if s.rehearse else [*TARGETS]
    for impl in s.results["struck"]:
        for n in rows:
            given = ["--impl", impl, "--shapes", shape_of(s), "--rows", n]
            answer = s.child("search", *given, seconds=30, silent=s.silence)
            yield f"{impl}, {n} rows", answer | {"verdict": fault(answer) or "ran"}
    if not s.results["struck"]:
        yield "skipped", "nothing was struck"


def targets(s: Session) -> Pieces:
    """For each number of rows the target, the prediction of time_model.py, and the best times."""
    answer = s.child("model", "--rows", *TARGETS, *ALSO, seconds=60)
    model = answer.get("results", {})
    for n in [*TARGETS, *ALSO]:
        row: dict[str, Any] = {"target_ms": TARGETS.get(n), "model_ms": model.get(str(n), fault(answer))}
        for when, step in (("before", "nearest"), ("after", "tuned")):
            measured = s.results["steps"].get(step, {})
            for impl, answer in measured.items():
                found = answer.get("results", {}) if isinstance(answer, dict) else {}
                wanted = (n, *size_of(s))
                here = [c for c in found.get("cases", []) if (c["rows"], c.get("vocabulary"), c.get("d")) == wanted]
                if impl == "baselines":
                    row["cublas_ms"] = next((c["ms"] for c in here if c["name"] == "cublas-fp16"), row.get("cublas_ms"))
                elif here:
                    row[f"{impl}, {when} tuning"] = _best(here, TARGETS.get(n), s.results["wrong"].get(impl))
        yield str(n), row


def _best(cases: list[dict[str, Any]], target: float | None, wrong: str | None) -> dict[str, Any]:
    best = min(cases, key=lambda c: c["ms"])
    row = {key: best[key] for key in ("name", "ms", "wrong_ids", "share_of_floor")}
    row["each_ms"] = {c["name"]: c["ms"] for c in cases}
    row["met"] = None if target is None else best["ms"] <= target
    return row | ({"wrong": wrong} if wrong else {})


def tuned(s: Session) -> Pieces:
    """Triton again with PEZ_FAST_AUTOTUNE=1: the configurations and the times, beside cuBLAS in the same call."""
    if "triton" in s.sound():
        rows = [4, 16] if s.rehearse else [*TARGETS, *ALSO]
        turns = [] if s.rehearse else [16, 1024]
        answer = searches(s, "triton", rows, turns, 120, PEZ_FAST_AUTOTUNE="1")
        answer["chosen"] = {path.name: path.read_text() for path in (s.work / "cache").rglob("pez_fast/*.json")}
        yield "triton", answer
    else:
        yield "triton", {"struck": s.results["struck"].get("triton", "it is not usable here")}
    rows = [4] if s.rehearse else [*TARGETS]
    yield "baselines", baselines(s, [shape_of(s)], rows, ["cublas-fp16", "cached-fp32"], 30)


def engine(s: Session) -> Pieces:
    """Whole steps through text towers beside the plain port on the same card, replayed where they can be captured."""
    yield from _engine(s, ["ViT-B-32"] if s.rehearse else ["ViT-H-14"])


def more_engine(s: Session) -> Pieces:
    """The rest of it: other towers, and torch.compile of one."""
    if s.rehearse:
        yield "skipped", "the same script as above"
        return
    yield from _engine(s, ["ViT-B-32", "ViT-L-14"])
    impls = s.sound(gpu=True) or ["auto"]
    options = ["--prompts", 1, 64, "--compile", "--dtypes", "bfloat16", "--steps", 50, "--repeats", 3]
    yield "ViT-B-32, compiled", s.script("pez_step", "--model", "ViT-B-32", "--impl", impls[0], *options, seconds=60)


def _engine(s: Session, models: list[str]) -> Pieces:
    if s.run(sys.executable, "-c", "import open_clip", seconds=60)["rc"]:
        yield "skipped", "open_clip cannot be imported"
        return
    impls = ["auto"] if s.rehearse else (s.sound(gpu=True) or ["auto"])[:2]
    # A process writes its file when it ends, so each long piece has a process of its own.
    parts = [([1], 2, 2)] if s.rehearse else [([1, 8], 50, 3), ([64, 256], 20, 3)]
    for model in models:
        for prompts, steps, repeats in parts:
            for impl in impls:
                options = ["--dtypes", "bfloat16", "--steps", steps, "--repeats", repeats, "--prompts", *prompts]
                told = f"{model}, {impl}, {prompts} prompts"
                seconds = 150 if s.rehearse else 60
                yield told, s.script("pez_step", "--model", model, "--impl", impl, *options, seconds=seconds)


def quality(s: Session) -> Pieces:
    """Quality of the bundled model's prompts over time, beside the plain port; "auto" skips what no card has run."""
    given: list[object] = ["--images", 64, "--steps", 25, 100, 400, "--plain-steps", 40]
    if s.rehearse:
        given = ["--images", 2, "--steps", 2, "--plain-steps", 2, "--ways", "pez_fast"]
    for impl in ["auto"] if s.rehearse else ["auto", *s.sound(gpu=True)[:1]]:
        yield impl, s.script("quality", *given, seconds=100, PEZ_FAST_IMPL=impl)


def language(s: Session) -> Pieces:
    """Steps of prompt learning for classification by GPT-2 shapes, beside the plain port on the same card."""
    if s.run(sys.executable, "-c", "import transformers", seconds=60)["rc"]:
        yield "skipped", "transformers cannot be imported"
        return
    for shape in ["tiny"] if s.rehearse else ["gpt2", "gpt2-large"]:
        given: list[object] = ["--shape", shape, "--prompts", 1, 8, 64, "--dtypes", "float32", "bfloat16"]
        given += ["--steps", 5, "--repeats", 3]
        if s.rehearse:
            given = ["--shape", shape, "--prompts", 1, 2, "--means", 12, "--steps", 2, "--repeats", 2]
        yield shape, s.script("classify_step", *given, seconds=90)


def joint(s: Session) -> Pieces:
    """Steps of one prompt for both text towers of Stable Diffusion XL, after parity with a plain loop over both."""
    if s.run(sys.executable, "-c", "import open_clip", seconds=60)["rc"]:
        yield "skipped", "open_clip cannot be imported"
        return
    given: list[object] = ["--prompts", 1, 8, 64, "--dtypes", "float32", "bfloat16", "--steps", 20]
    if s.rehearse:
        given = ["--models", "emoji", "emoji", "--prompts", 2, "--steps", 2, "--repeats", 1]
    for impl in ["auto"] if s.rehearse else (s.sound(gpu=True) or ["auto"])[:2]:
        yield impl, s.script("joint_step", "--impl", impl, *given, seconds=90)


def machine(s: Session) -> Pieces:
    """Whether the card gives the bits that the PTX machine of the tests gives."""
    names = ["cuda"] if s.rehearse else [name for name in s.sound(gpu=True) if name in ("cuda", "triton")]
    for impl in names:
        yield impl, s.script("ptx_on_card", "--impl", impl, *(["--cases", 2] if s.rehearse else []), seconds=120)


def diffusion(s: Session) -> Pieces:
    """Steps of prompt learning through a diffusion model of SD 1.5's shapes, beside a plain loop on the same card."""
    if s.run(sys.executable, "-c", "import diffusers, transformers", seconds=60)["rc"]:
        yield "skipped", "diffusers or transformers cannot be imported"
        return
    shape, given = "sd15", ["--prompts", 1, 4, "--dtypes", "float32", "bfloat16", "--steps", 5, "--repeats", 3]
    if s.rehearse:
        shape, given = "tiny", ["--prompts", 1, 2, "--steps", 2, "--repeats", 2]
    yield shape, s.script("diffusion_step", "--shape", shape, *given, seconds=120)


def other_baselines(s: Session) -> Pieces:
    rows = [4] if s.rehearse else [16, 1024, 4096]
    yield "baselines", baselines(s, [shape_of(s)], rows, MORE_BASELINES, 60)


def other_shapes(s: Session) -> Pieces:
    shapes, rows = (["512x64"], [4]) if s.rehearse else (SHAPES, [16, 1024, 4096, 65536])

    def run(impl: str) -> dict[str, Any]:
        given = ["--shapes", *shapes, "--rows", *rows, "--seconds", each_case(s) / 2]
        return s.child("search", "--impl", impl, *given, seconds=60)

    yield from s.each(run, gpu=True)
    yield "baselines", baselines(s, shapes, rows, ["cached-fp32", "cublas-fp16"], 60)
