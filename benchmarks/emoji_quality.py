"""Quality of learned prompts on held-out images with known answers, beside the plain port of the original.

    python benchmarks/emoji_quality.py --out benchmarks/results/emoji_quality.json

Each image (`benchmarks/heldout/`) shows one emoji, on the one background colour on which the bundled model never saw
it. A prompt counts for the name if it holds a word of the name, and for the colour if it holds the colour's name. The
plain port (`pez_fast.reference.optimize_prompt`) learns from the whole vocabulary as the original does, one image at a
time, for the same number of steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from provenance import write
from torch import Tensor

import pez_fast
from pez_fast import reference
from pez_fast.models import ClipEncoder

HELD_OUT = Path(__file__).parent / "heldout"
SMALL_WORDS = {"a", "and", "at", "for", "in", "of", "on", "the", "with", "&"}


def holds_name(prompt: str, name: str) -> bool:
    """Returns whether the prompt holds a word of the name; small words do not count."""
    words = {w.strip(",.:!()'\"") for w in name.split()} - SMALL_WORDS
    return bool(words & set(prompt.split()))


def held_out(count: int) -> tuple[list[dict], list[Image.Image]]:
    """Returns the labels and the images of the first `count` held-out images."""
    labels = json.loads((HELD_OUT / "labels.json").read_text())[:count]
    return labels, [Image.open(HELD_OUT / label["file"]).convert("RGB") for label in labels]


def plain_traces(clip: ClipEncoder, targets: Tensor, steps: int, prompt_len: int = 16) -> list[reference.Trace]:
    """Runs the plain port on each target of (N, D) alone, with seed k for target k, over the whole vocabulary."""
    traces = []
    for k in range(len(targets)):
        torch.manual_seed(k)
        traces.append(reference.optimize_prompt(clip.model, targets[k : k + 1], prompt_len=prompt_len, steps=steps))
    return traces


def summary(
    label: str, prompts: list[str], labels: list[dict], ids: list[float], text: list[float], seconds: float
) -> dict:
    """Returns the shares and medians of one way of learning, and prints them as one line."""
    name = [holds_name(prompt, truth["name"]) for prompt, truth in zip(prompts, labels, strict=True)]
    colour = [truth["colour"] in prompt.split() for prompt, truth in zip(prompts, labels, strict=True)]
    either = [a or b for a, b in zip(name, colour, strict=True)]
    row = {
        "name": label,
        "images": len(prompts),
        "name_share": sum(name) / len(name),
        "colour_share": sum(colour) / len(name),
        "name_or_colour_share": sum(either) / len(name),
        "median_ids_score": statistics.median(ids),
        "median_text_score": statistics.median(text),
        "seconds": seconds,
    }
    print(
        f"{label:28} name {row['name_share']:4.0%}  colour {row['colour_share']:4.0%}  "
        f"either {row['name_or_colour_share']:4.0%}  "
        f"ids {row['median_ids_score']:.4f}  text {row['median_text_score']:.4f}  {seconds:7.1f} s"
    )
    return row


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--restarts", type=int, nargs="+", default=[1])
    parser.add_argument("--refine", type=int, default=32, help="steps after the search")
    parser.add_argument("--prompt-len", type=int, default=16)
    parser.add_argument("--vocabulary", nargs="+", default=["stable"], choices=["stable", "words", "full"])
    parser.add_argument("--plain", type=int, help="images for the plain port; default: all of them")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    labels, images = held_out(args.images)
    clip = pez_fast.load_clip(args.model)
    targets = clip.encode_images(images)

    def cosines(prompts: list[str]) -> list[float]:
        return (clip.encode_texts(prompts) * targets).sum(-1).tolist()

    captions = [f"{label['name']} on a {label['colour']} background" for label in labels]
    rows = [summary("the true caption", captions, labels, cosines(captions), cosines(captions), 0.0)]
    for restarts, vocabulary in itertools.product(args.restarts, args.vocabulary):
        begun = time.perf_counter()
        found = pez_fast.invert_batch(
            images,
            clip,
            prompt_len=args.prompt_len,
            steps=args.steps,
            restarts=restarts,
            refine=args.refine,
            vocabulary=vocabulary,
        )
        rows.append(
            summary(
                f"pez_fast, {vocabulary}, {restarts} restart{'s' * (restarts > 1)}",
                [r.prompt for r in found],
                labels,
                [r.ids_score for r in found],
                [r.text_score for r in found],
                time.perf_counter() - begun,
            )
        )
        for label, result in list(zip(labels, found, strict=True))[:8]:
            print(f"    {label['name']} on {label['colour']}: {result.prompt}")
    if args.plain != 0:
        labels, targets = labels[: args.plain], targets[: args.plain]
        begun = time.perf_counter()
        traces = plain_traces(clip, targets, args.steps, args.prompt_len)
        prompts = [clip.tokenizer.decode(trace.best_ids.tolist()) for trace in traces]
        scores = [trace.best_score for trace in traces]
        rows.append(summary("plain port", prompts, labels, scores, cosines(prompts), time.perf_counter() - begun))
    if args.out:
        write(args.out, {"steps": args.steps, "refine": args.refine, "prompt_len": args.prompt_len, "rows": rows})


if __name__ == "__main__":
    main()
