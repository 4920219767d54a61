"""Quality against time on held-out images: the plain port of the original, and pez_fast with and without its parts.

    python benchmarks/quality.py --out benchmarks/results/quality_cpu.json

The script learns prompts of 16 tokens for 200 images of the bundled model (`benchmarks/heldout/`). A point of a curve
is the median cosine of the prompts typed in again (text_score) after so many seconds for all images. For the plain port
(`pez_fast.reference.optimize_prompt`, one image at a time over the whole vocabulary, as the original does) the points
are numbers of its steps in one run. For pez_fast each number of steps is a run of its own, everything included. All
points come from one run of the script, on the same number of threads. It draws the curves beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from emoji_quality import held_out, plain_traces
from provenance import write
from torch import Tensor

import pez_fast
from pez_fast.models import ClipEncoder
from pez_fast.objectives import Similarity

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WAYS: dict[str, dict[str, Any]] = {
    "pez_fast": {},
    "pez_fast, 4 restarts": {"restarts": 4},
    "pez_fast, without refine": {"refine": 0},
    "pez_fast, 4 restarts, without refine": {"restarts": 4, "refine": 0},
}
COLOURS = dict(zip(WAYS, ("#c2185b", "#6a3fc4", "#e0861a", "#1967d2"), strict=True))
PLAIN_STEPS = (
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
    3000,
)  # steps of the plain port at which its best prompts so far are scored


def pez_fast_point(clip: ClipEncoder, targets: Tensor, way: str, steps: int) -> dict[str, Any]:
    """Returns the point of pez_fast in one way, for one number of steps."""
    begun = time.perf_counter()
    found = pez_fast.search(Similarity(targets), clip, prompt_len=16, steps=steps, **WAYS[way])
    return point(way, steps, time.perf_counter() - begun, [r.text_score for r in found], [r.ids_score for r in found])


def plain_points(clip: ClipEncoder, targets: Tensor, steps: int) -> list[dict[str, Any]]:
    """Returns the points of the plain port."""
    begun = time.perf_counter()
    traces = plain_traces(clip, targets, steps)
    seconds = time.perf_counter() - begun
    points = []
    for num_steps in [*(n for n in PLAIN_STEPS if n < steps), steps]:
        best_steps = [max(range(num_steps), key=trace.scores.__getitem__) for trace in traces]
        prompts = [
            clip.vocabulary.decode(trace.ids[k][0].tolist()) for trace, k in zip(traces, best_steps, strict=True)
        ]
        text = (clip.encode_texts(prompts) * targets).sum(-1).tolist()
        points.append(
            point(
                "plain port",
                num_steps,
                seconds * num_steps / steps,
                text,
                [t.scores[k] for t, k in zip(traces, best_steps, strict=True)],
            )
        )
    return points


def point(name: str, steps: int, seconds: float, text: list[float], ids: list[float]) -> dict[str, Any]:
    """Returns a point of a curve, and prints it."""
    row = {
        "name": name,
        "steps": steps,
        "seconds": seconds,
        "median_text_score": statistics.median(text),
        "mean_text_score": statistics.mean(text),
        "median_ids_score": statistics.median(ids),
        "text_scores": [round(t, 5) for t in text],
    }
    print(
        f"{name:38} {steps:5} steps {seconds:8.1f} s   "
        f"text {row['median_text_score']:.4f}   ids {row['median_ids_score']:.4f}",
        flush=True,
    )
    return row


def verdict(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares pez_fast in its default way with the plain port's last point: in its time, and in a tenth of it."""
    plain = max((p for p in points if p["name"] == "plain port"), key=lambda p: p["seconds"])
    default_points = [p for p in points if p["name"] == "pez_fast"]
    answer: dict[str, Any] = {
        "plain": {k: plain[k] for k in ("steps", "seconds", "median_text_score", "median_ids_score")}
    }
    for name, share in (("in its time", 1.0), ("in a tenth of it", 0.1)):
        within = [p for p in default_points if p["seconds"] <= share * plain["seconds"]]
        if not within:
            continue
        best = max(within, key=lambda p: p["seconds"])
        better = sum(a > b for a, b in zip(best["text_scores"], plain["text_scores"], strict=True))
        answer[name] = {
            "steps": best["steps"],
            "seconds": best["seconds"],
            "median_text_score": best["median_text_score"],
            "margin": best["median_text_score"] - plain["median_text_score"],
            "better_on": better,
        }
        print(
            f"{name} ({best['seconds']:.0f} of {plain['seconds']:.0f} s): "
            f"median {answer[name]['margin']:+.4f}, better on {better} images"
        )
    return answer


def draw(points: list[dict[str, Any]], captions: float, path: Path, machine: str) -> None:
    """Draws the curves as an image."""
    figure, axis = plt.subplots(figsize=(8.2, 4.8))
    for name in ("plain port", *WAYS):
        some = sorted((p for p in points if p["name"] == name), key=lambda p: p["steps"])
        if not some:
            continue
        seconds, text = [p["seconds"] for p in some], [p["median_text_score"] for p in some]
        colour, width = COLOURS.get(name, "#5f5f5f"), 2.6 if name in ("pez_fast", "plain port") else 1.4
        axis.plot(seconds, text, "o-", color=colour, linewidth=width, markersize=4, label=name)
        if name == "plain port":
            ids = [p["median_ids_score"] for p in some]
            axis.plot(
                seconds, ids, ":", color=colour, linewidth=1.4, label="plain port, its ids (before they are typed in)"
            )
        for p in (some[-1],) if name in ("pez_fast", "plain port") else ():
            axis.annotate(
                f"{p['steps']} steps",
                (p["seconds"], p["median_text_score"]),
                xytext=(6, -3),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    axis.axhline(captions, color="#bbbbbb", linewidth=1, linestyle="--", label="the true captions")
    axis.set_xscale("log")
    axis.set_xlabel(f"seconds for {len(points[0]['text_scores'])} images, {machine}")
    axis.set_ylabel("median cosine of the text")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.set_title("Prompts of 16 tokens for held-out images of the bundled model", fontsize=11, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50, 100, 200, 400])
    parser.add_argument("--plain-steps", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--redraw", type=Path, metavar="JSON", help="draw what this file holds, and measure nothing")
    args = parser.parse_args()
    if args.redraw:
        stored = json.loads(args.redraw.read_text())
        return draw(
            stored["results"]["points"],
            stored["results"]["true_captions"],
            args.redraw.with_suffix(".png"),
            stored["results"]["machine"],
        )
    labels, images = held_out(args.images)
    clip = pez_fast.load_clip("emoji", device=args.device)
    targets = clip.encode_images(images)
    captions = statistics.median(
        (clip.encode_texts([f"{x['name']} on a {x['colour']} background" for x in labels]) * targets).sum(-1).tolist()
    )
    machine = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{(n := torch.get_num_threads())} thread{'s' * (n > 1)} of a CPU"
    )
    pez_fast.search(
        Similarity(targets[:1]), clip, prompt_len=16, steps=1
    )  # a first search, which makes what is made once
    points = [pez_fast_point(clip, targets, way, steps) for way in args.ways for steps in args.steps]
    points += plain_points(clip, targets, args.plain_steps)
    answer = verdict(points)
    if args.out:
        facts = {"images": len(images), "prompt_len": 16, "machine": machine, "true_captions": captions}
        write(args.out, {**facts, "verdict": answer, "points": points})
        draw(points, captions, args.out.with_suffix(".png"), machine)


if __name__ == "__main__":
    main()
