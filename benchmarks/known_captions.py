"""Captions recovered from their own text features, by pez_fast and by the plain port of the original, at equal time.

    python benchmarks/known_captions.py --out benchmarks/results/known_captions_cpu.json

A caption is a sentence of examples/emoji_images.py (one emoji or two, on a colour) with names of `benchmarks/heldout/`.
Its target is its own feature in the bundled model, and every method learns as many tokens as the caption has, so that
the caption itself is the best answer (cosine 1).

Equal time: pez_fast in its default way runs first, for `--steps` steps and its refinement. The process CPU seconds that
it took for one caption, on one thread, are the budget of every other way. A search without refinement is ended by the
clock. The way with restarts has as many steps of both stages as a short run of it before says, and the plain port
(`pez_fast.reference.optimize_prompt`, one caption at a time over the whole vocabulary, as the original does) as many
as a short run of it says; on some captions it gets ten times as many once more. The short runs count for nobody. The
rows hold the steps and the seconds that each really took.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from emoji_quality import held_out, plain_traces
from provenance import write
from torch import Tensor

import pez_fast
from pez_fast.models import ClipEncoder
from pez_fast.objectives import Similarity

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from emoji_images import COLOUR_NAMES, PAIR, SINGLE

ENDLESS = 10**5  # steps of a search that the clock ends
RESTARTS = 4
PROBE = 20  # steps of the plain port that tell how many fit into the time
SHORT = 8  # a run that tells how many steps of pez_fast fit has so many times fewer
LONGER = 10  # how much more time the plain port gets in its second row


def captions(count: int, seed: int = 0) -> list[str]:
    """Returns captions in the language of the bundled model, in turn of one emoji and of two."""
    names, rng = [label["name"] for label in held_out(200)[0]], random.Random(f"known captions {seed}")
    drawn = []
    for k in range(count):
        first, second = rng.sample(names, 2)
        drawn.append(rng.choice(PAIR if k % 2 else SINGLE).format(a=first, b=second, c=rng.choice(COLOUR_NAMES)))
    return drawn


def overlap(found: Sequence[Any], known: Sequence[Any]) -> int:
    """Returns how many of the known things were found, each as often as it stands in both."""
    return (Counter(found) & Counter(known)).total()


def words(text: str) -> list[str]:
    """Returns the words of a text: runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


@dataclass(frozen=True)
class Known:
    """The captions to recover: texts, their tokens, and their features (N, D)."""

    clip: ClipEncoder
    texts: list[str]
    ids: list[list[int]]
    targets: Tensor

    @classmethod
    def of(cls, clip: ClipEncoder, texts: list[str]) -> Known:
        return cls(clip, texts, [clip.vocabulary.encode(text) for text in texts], clip.encode_texts(texts))

    def first(self, count: int) -> Known:
        """Returns the first captions."""
        return Known(self.clip, self.texts[:count], self.ids[:count], self.targets[:count])

    def groups(self) -> dict[int, list[int]]:
        """Returns the numbers of the captions of each length."""
        found = defaultdict(list)
        for k, ids in enumerate(self.ids):
            found[len(ids)].append(k)
        return dict(sorted(found.items()))

    def row(self, name: str, prompts: list[str], steps: int, refine: int, cpu: float, wall: float) -> dict[str, Any]:
        """Returns what prompts recovered of the captions, and prints it as one line."""
        ids = [self.clip.vocabulary.encode(prompt) for prompt in prompts]
        count, tokens = len(prompts), sum(map(len, self.ids))
        known = [words(text) for text in self.texts]
        found = [overlap(words(prompt), own) for prompt, own in zip(prompts, known, strict=True)]
        cosines = (self.clip.encode_texts(prompts) * self.targets).sum(-1).tolist()
        row = {
            "name": name,
            "captions": count,
            "steps": steps,
            "refine": refine,
            "cpu_seconds_per_caption": cpu / count,
            "wall_seconds_per_caption": wall / count,
            "median_cosine": statistics.median(cosines),
            "mean_cosine": statistics.mean(cosines),
            "tokens_recovered": sum(map(overlap, ids, self.ids)) / tokens,
            "words_recovered": sum(found) / sum(map(len, known)),
            "all_words": sum(n == len(own) for n, own in zip(found, known, strict=True)) / count,
            "exact": sum(own == other for own, other in zip(ids, self.ids, strict=True)) / count,
            "prompts": prompts,
        }
        print(
            f"{name:34} {count:4} captions {steps:5} + {refine:2} steps {cpu / count:6.3f} CPU s each   "
            f"cosine {row['median_cosine']:.4f}  tokens {row['tokens_recovered']:4.0%}  "
            f"words {row['words_recovered']:4.0%}  all words {row['all_words']:4.0%}  exact {row['exact']:4.0%}",
            flush=True,
        )
        return row


def clocked(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns what a call returns, its process CPU seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    answer = run()
    return answer, time.process_time() - cpu, time.perf_counter() - wall


def searched(known: Known, seconds: float | None = None, **options: Any) -> list[Any]:
    """Returns what pez_fast finds, in a batch for each length of captions.

    Args:
        seconds: the CPU seconds for each caption after which the clock ends the search. Default: no limit.
    """
    results: list[Any] = [None] * len(known.texts)
    for length, numbers in known.groups().items():
        own = dict(options)
        if seconds is not None:
            end = time.process_time() + seconds * len(numbers)
            own |= {"callback": lambda _, end=end: time.process_time() >= end, "every": 10, "steps": ENDLESS}
        found = pez_fast.search(Similarity(known.targets[numbers]), known.clip, prompt_len=length, **own)
        for number, result in zip(numbers, found, strict=True):
            results[number] = result
    return results


def learned(known: Known, name: str, seconds: float | None = None, refine: int = 0, **options: Any) -> dict[str, Any]:
    """Returns the row of pez_fast; as for `searched`."""
    results, cpu, wall = clocked(lambda: searched(known, seconds, refine=refine, **options))
    steps = round(statistics.mean(result.steps for result in results))
    return known.row(name, [result.prompt for result in results], steps, refine, cpu, wall)


def plain(known: Known, name: str, steps: int) -> dict[str, Any]:
    """Returns the row of the plain port after so many steps."""

    def run() -> list[str]:
        prompts = []
        for target, ids in zip(known.targets, known.ids, strict=True):
            (trace,) = plain_traces(known.clip, target[None], steps, len(ids))
            prompts.append(known.clip.vocabulary.decode(trace.best_ids.tolist()))
        return prompts

    prompts, cpu, wall = clocked(run)
    return known.row(name, prompts, steps, 0, cpu, wall)


def plain_step(known: Known) -> float:
    """Returns the CPU seconds of a step of the plain port, after a first run that warms up."""
    length = sorted(map(len, known.ids))[len(known.ids) // 2]

    def run() -> Any:
        return plain_traces(known.clip, known.targets[:1], PROBE, length)

    run()
    return clocked(run)[1] / PROBE


def fitting(known: Known, steps: int, refine: int, **options: Any) -> dict[str, int]:
    """Returns the numbers of steps that take a way of pez_fast as long as its default way takes for `steps`."""

    def seconds(**way: Any) -> float:
        few = {"steps": max(1, steps // SHORT), "refine": max(1, refine // SHORT)}
        return clocked(lambda: searched(known, **few, **way))[1]

    share = seconds() / seconds(**options)
    return {"steps": max(1, round(share * steps)), "refine": max(1, round(share * refine))}


def measured(known: Known, steps: int, refine: int, longer: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of all ways, each with the CPU seconds of the first for each caption."""
    pez_fast.search(Similarity(known.targets[:1]), known.clip, prompt_len=4, steps=1, refine=1)  # makes what lasts
    default = learned(known, "pez_fast", steps=steps, refine=refine)
    yield default
    budget = default["cpu_seconds_per_caption"]
    yield learned(known, "PEZ, without refine", budget)
    fit = max(1, round(budget / plain_step(known)))
    yield plain(known, "plain port", fit)
    fitted = fitting(known, steps, refine, restarts=RESTARTS)
    yield learned(known, f"pez_fast, {RESTARTS} restarts", restarts=RESTARTS, **fitted)
    some = known.first(longer)
    yield plain(some, f"plain port, {LONGER} times as long", LONGER * fit)
    wall = default["wall_seconds_per_caption"] * longer
    same = default["prompts"][:longer]  # of the first row, so that the two can be compared
    yield some.row("pez_fast, the same captions", same, steps, refine, budget * longer, wall)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100, help="steps of pez_fast in its default way")
    parser.add_argument("--refine", type=int, default=32, help="steps of its refinement")
    parser.add_argument("--longer", type=int, default=10, help="captions for which the plain port also gets more time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        known = Known.of(pez_fast.load_clip("emoji", device="cpu"), captions(args.captions))
        allowed = known.clip.table("stable", ()).allowed
        facts = {
            "captions": known.texts,
            "stable_tokens": statistics.mean(bool(allowed[i]) for ids in known.ids for i in ids),
            "stable_captions": statistics.mean(all(bool(allowed[i]) for i in ids) for ids in known.ids),
        }
        rows: list[dict[str, Any]] = []
        for row in measured(known, args.steps, args.refine, min(args.longer, args.captions)):
            rows.append(row)
            if args.out:  # after each row, so that a run that is ended loses only the row in progress
                budget = rows[0]["cpu_seconds_per_caption"]
                write(args.out, {**facts, "budget_cpu_seconds_per_caption": budget, "rows": rows}, final=False)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
