"""Prompts of several lengths for held-out pictures, scored by the model that learned them and by a referee.

    python benchmarks/lengths.py --out benchmarks/results/lengths_cpu.json

It says first how well both models tell the held-out pictures apart, since a referee is worth no more than that.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from emoji_quality import HELD_OUT, held_out
from provenance import write

import pez_fast
from pez_fast.models import ClipEncoder
from pez_fast.report.lengths import draw_lengths, show_lengths, told

REFEREE = Path(__file__).parent / "models" / "referee"


def told_apart(clip: ClipEncoder) -> dict[str, Any]:
    """Returns how often a model finds a held-out picture's caption among those of all, and the captions' cosines."""
    labels, images = held_out(200)
    captions = [f"{label['name']} on a {label['colour']} background" for label in labels]
    cosines = clip.encode_images(images) @ clip.encode_texts(captions).T
    own = cosines.diagonal()
    places = (cosines > own[:, None]).sum(-1)
    return {
        "model": Path(clip.name).name,
        "pictures": len(images),
        "top1": float((places == 0).float().mean()),
        "top5": float((places < 5).float().mean()),
        "median_cosine_of_the_caption": float(own.median()),
        "median_cosine_of_other_captions": float(cosines[~own.diag().bool()].median()),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--refine", type=int, default=32)
    parser.add_argument("--referee", default=str(REFEREE))
    parser.add_argument("--keep", type=Path, help="folder that keeps finished prompts")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    clip, referee = pez_fast.load_clip("emoji"), pez_fast.load_clip(args.referee)
    referee.name = Path(referee.name).name
    judges = [told_apart(each) for each in (clip, referee)]
    for judge in judges:
        print(judge, flush=True)
    files = [HELD_OUT / label["file"] for label in held_out(args.images)[0]]
    begun = time.perf_counter()
    study = pez_fast.study_lengths(
        files, clip, referee, args.lengths, range(args.seeds), out=args.keep, steps=args.steps, refine=args.refine
    )
    seconds = time.perf_counter() - begun
    for run in study.runs:
        run.image = Path(run.image).name
    show_lengths(study)
    print(told(study))
    if args.out is not None:
        found = {"steps": args.steps, "refine": args.refine, "judges": judges, **study.to_dict(), "seconds": seconds}
        write(args.out, found)
        draw_lengths(study).save(args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
