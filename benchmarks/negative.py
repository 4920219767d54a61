"""What a negative weight does to a learned prompt.

    python benchmarks/negative.py --out benchmarks/results/negative_cpu.json

Pairs of held-out images (`benchmarks/heldout/`): a prompt is learned for the first, with several weights of the second,
or of the words that describe the second. What is told: the mean cosine of the prompts with either image, and how many
prompts hold the name or the colour of either. The last row is the prompt for the avoided image itself, which is what a
generator takes as its negative prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from emoji_quality import held_out, holds_name
from provenance import write
from torch import Tensor

import pez_fast
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.tasks.scores import cosines

WEIGHTS = (-0.25, -0.5, -1.0)


def ways(images: Tensor, words: Tensor) -> dict[str, Tensor]:
    """Returns the targets (N, D) of each way, from features (2N, D) of N wanted and N avoided images and their words.

    They are those that `pez_fast.invert` makes of an image, a second one or a text, and their weights.
    """
    count = len(images) // 2

    def targets(second: Tensor, weight: float) -> Tensor:
        return torch.stack(
            [weighted_target(torch.stack([images[k], second[count + k]]), [1, weight]) for k in range(count)]
        )

    found = {"without": images[:count]}
    for kind, second in (("image", images), ("words", words)):
        found |= {f"{kind}, weight {weight}": targets(second, weight) for weight in WEIGHTS}
    return found | {"avoided alone": images[count:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompt-len", type=int, default=8)
    parser.add_argument("--vocabulary", default="words")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    clip = pez_fast.load_clip("emoji", device="cpu")
    labels, pictures = held_out(2 * options.pairs)
    features = clip.encode_images(pictures)
    named = clip.encode_texts([f"{label['name']} on {label['colour']}" for label in labels])
    every, start = ways(features, named), time.perf_counter()
    results = pez_fast.search(
        Similarity(torch.cat(list(every.values()))),
        clip,
        prompt_len=options.prompt_len,
        steps=options.steps,
        vocabulary=options.vocabulary,
    )
    seconds, rows = time.perf_counter() - start, []
    for at, way in enumerate(every):
        prompts = [result.prompt for result in results[at * options.pairs : (at + 1) * options.pairs]]
        row = {"way": way}
        for name, part in (("wanted", slice(0, options.pairs)), ("avoided", slice(options.pairs, None))):
            values = cosines(features[part], prompts, clip).diagonal().tolist()
            truths = zip(prompts, labels[part], strict=True)
            row[f"cosine_{name}"] = statistics.mean(values)
            held = [holds_name(prompt, truth["name"]) or truth["colour"] in prompt.split() for prompt, truth in truths]
            row[f"holds_{name}"] = sum(held) / len(held)
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else f"{value:20}" for value in row.values()))
        rows.append({**row, "prompts": prompts})
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write(options.out, {"settings": settings, "seconds": seconds, "rows": rows})


if __name__ == "__main__":
    main()
