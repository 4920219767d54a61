"""How well a style prompt carries over to new subjects, by the number of pictures and tokens.

    python benchmarks/style_transfer.py --out benchmarks/results/style_transfer.json

For each of the model's eight example images, the style is the background colour: a prompt is learned from held-out
images on that colour (`benchmarks/heldout/`), then put together with what the example image shows (`apply_style`). The
example image is never seen by the search, so its cosine with the new prompt says whether the style carries over; the
style's own pictures, which chose the prompt, cannot say that.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from emoji_quality import held_out
from provenance import write

import pez_fast
from pez_fast.models import ClipEncoder
from pez_fast.models.loading import BUNDLED
from pez_fast.objectives import Similarity


def examples(count: int, pictures: int) -> list[tuple[str, str, Path, list[Any]]]:
    """Returns for each example image its subject, its colour, its file, and held-out images on that colour."""
    labels, images = held_out(200)
    found = []
    for file in sorted((BUNDLED["emoji"] / "images").glob("*.png"))[:count]:
        subject, colour = file.stem.split(" on ")
        same = [image for label, image in zip(labels, images, strict=True) if label["colour"] == colour]
        found.append((subject, colour, file, same[:pictures]))
    return found


def row(clip: ClipEncoder, cases: list[tuple[str, str, Path, list[Any]]], length: int, steps: int) -> dict[str, Any]:
    """Returns the means over all examples for styles of so many tokens, and prints them as one line."""
    targets = torch.stack([clip.encode_images(images).mean(0) for *_, images in cases])
    options = {"steps": steps, "vocabulary": "words", "restarts": 4}
    styles = pez_fast.search(Similarity(targets), clip, prompt_len=length, **options)
    rows = []
    for (subject, colour, file, images), style in zip(cases, styles, strict=True):
        (styled,) = pez_fast.apply_style(style, subject, clip, images)
        new, alone, true = pez_fast.score(
            [file], [styled.prompt, subject, f"{subject} on a {colour} background"], clip
        )[0].tolist()
        rows.append((styled.prompt, style.text_score, styled.score, styled.subject_score, new, alone, true))
        rows[-1] += (colour in style.prompt.split(),)
    names = ("style", "new_prompt", "subject_alone", "unseen_new_prompt", "unseen_subject_alone", "unseen_true_caption")
    means = {name: statistics.mean(r[k + 1] for r in rows) for k, name in enumerate(names)}
    answer = {"tokens": length, **means, "holds_colour": statistics.mean(r[-1] for r in rows)}
    print(", ".join(f"{name} {value:.3f}" for name, value in answer.items()), flush=True)
    return {**answer, "prompts": [r[0] for r in rows]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--pictures", type=int, nargs="+", default=[3, 7, 25], help="most images of each colour")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    clip, rows = pez_fast.load_clip("emoji", device="cpu"), []
    for pictures in args.pictures:
        cases = examples(args.examples, pictures)
        fewest = min(len(images) for *_, images in cases)
        for length in args.tokens:
            print(f"{fewest} to {pictures} pictures, ", end="")
            rows.append({"pictures": [fewest, pictures], **row(clip, cases, length, args.steps)})
    if args.out:
        write(args.out, {"examples": args.examples, "steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
