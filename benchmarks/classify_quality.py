"""How good classification prompts are, by method, at equal time, on the bundled language model and its known answer.

    python benchmarks/classify_quality.py --out benchmarks/results/classify_quality_cpu.json

For each of five seeds each method learns a prompt for the presets reviews and headlines in the same number of seconds
(its number of steps follows from a short run before). The rows of the results hold the accuracy on the preset's test
rows, the perplexity of the prompt, and the accuracy of the same text on two models of other architectures and
tokenizers (benchmarks/models). The few-shot curve learns from 1, 4, 16 and all examples of each label. The known answer
is what the texts' generator says: words such as "honest verdict" in front raise the accuracy (examples/review_text.py).
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from provenance import now, write

from pez_fast import evaluate_classifier, learn_classifier, load_lm, transfer
from pez_fast.dataset import learn_classifiers
from pez_fast.labelled import PRESETS, LabelConfig
from pez_fast.methods import (
    AutoPromptMethod,
    AutoPromptSGDMethod,
    FluentPromptMethod,
    GCGMethod,
    PEZMethod,
    SoftPromptMethod,
)
from pez_fast.tasks.labelled_task import labelled, soft_accuracy

MODELS = Path(__file__).parent / "models"
KNOWN = "honest verdict careful critic judge"
FLUENCY = 0.03  # λ where a method has the fluency term
SCORES = 8  # scores on held-out examples in a search, besides the first
PROBE = 6  # steps of the short run that tells how many steps fit into the time
METHODS: dict[str, tuple[Callable[[int], Any], float]] = {
    "PEZ": (lambda steps: PEZMethod(), 0.0),
    "PEZ + fluency": (lambda steps: PEZMethod(), FLUENCY),
    "AutoPrompt": (lambda steps: AutoPromptMethod(), 0.0),
    "AutoPrompt (SGD)": (lambda steps: AutoPromptSGDMethod(), 0.0),
    "FluentPrompt": (lambda steps: FluentPromptMethod(steps), FLUENCY),
    "GCG": (lambda steps: GCGMethod(), 0.0),
    "soft prompt, projected": (lambda steps: SoftPromptMethod(), 0.0),
}


class Setting:
    """The models, and what all runs share."""

    def __init__(self, prompt_len: int, seconds: float) -> None:
        self.lm, self.prompt_len, self.seconds = load_lm("reviews"), prompt_len, seconds
        self.others = [load_lm(MODELS / name) for name in ("llama", "t5")]

    def learn(self, preset: str, method: str, seed: int, steps: int, scores: int = SCORES) -> Any:
        """Returns the result of a method after so many steps, with so many scores on the way, and its seconds."""
        make, fluency = METHODS[method]
        begun = now()
        result = learn_classifier(
            preset,
            self.lm,
            prompt_len=self.prompt_len,
            seed=seed,
            stages=[(make(steps), steps)],
            fluency=fluency,
            held_out_every=-(-steps // scores),
        )
        return result, now() - begun

    def steps_for(self, preset: str, method: str) -> int:
        """Returns how many steps of a method fit into the time."""
        self.learn(preset, method, 1000, 1, 1)
        short, long = (self.learn(preset, method, 1000, steps, 1)[1] for steps in (1, 1 + PROBE))
        return max(2, round(self.seconds / max(1e-3, (long - short) / PROBE)))

    def row(self, preset: str, method: str, prompt: str, seed: int | None, **more: Any) -> dict[str, Any]:
        """Returns what is measured of a prompt."""
        own = evaluate_classifier(prompt, self.lm, preset)
        moved = transfer(prompt.strip(), self.others, preset)
        return {
            "preset": preset,
            "method": method,
            "seed": seed,
            "prompt": prompt,
            "accuracy": own.accuracy,
            "loss": own.loss,
            "perplexity": own.perplexity,
            **{f"accuracy on {Path(s.model).name}": s.accuracy for s in moved},
            **more,
        }


def compare(setting: Setting, presets: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns a row for each method and seed."""
    rows = []
    for preset in presets:
        rows.append(setting.row(preset, "template alone", "", None))
        rows.append(setting.row(preset, "known answer", " " + KNOWN, None))
        tests = labelled(preset, LabelConfig(), test=True)
        for method in METHODS:
            steps = setting.steps_for(preset, method)
            for seed in seeds:
                result, seconds = setting.learn(preset, method, seed, steps)
                more = {"seconds": seconds, "steps": steps, "held-out accuracy": result.accuracy}
                if result.soft_prompt is not None:
                    more["accuracy of the soft prompt"] = soft_accuracy(result, setting.lm, tests)
                rows.append(setting.row(preset, method, result.prompt, seed, **more))
                print(f"{preset} {method} seed {seed}: {rows[-1]['accuracy']:.3f} {result.prompt!r}", flush=True)
    return rows


def few_shot(setting: Setting, presets: Sequence[str], seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Returns a row for each number of examples and each seed; all seeds of one number are learned in one batch."""
    rows = []
    for preset in presets:
        for shots in (1, 4, 16, None):
            with tempfile.TemporaryDirectory() as folder:
                results = learn_classifiers(
                    preset,
                    setting.lm,
                    folder,
                    seeds=seeds,
                    prompt_lens=[setting.prompt_len],
                    shots=[shots],
                    steps=steps,
                )
            method = f"PEZ, {shots or 'all'} examples of each label"
            for result in results:
                rows.append(setting.row(preset, method, result.prompt, result.seed, shots=shots, steps=steps))
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the means and standard deviations over the seeds as a table of Markdown."""
    names = ["accuracy", "perplexity", "accuracy on llama", "accuracy on t5", "seconds"]
    print("| preset | method | " + " | ".join(names) + " |\n|" + "---|" * (2 + len(names)))
    for preset, method in dict.fromkeys((row["preset"], row["method"]) for row in rows):
        group = [row for row in rows if (row["preset"], row["method"]) == (preset, method)]
        cells = [spread([row[name] for row in group if row.get(name) is not None], name) for name in names]
        print(f"| {preset} | {method} | " + " | ".join(cells) + " |")


def spread(values: Sequence[float], name: str) -> str:
    """Returns mean and standard deviation as text; the geometric mean for perplexities."""
    if not values:
        return ""
    if name == "perplexity":
        return f"{math.exp(statistics.mean(map(math.log, values))):.0f}"
    if name == "seconds":
        return f"{statistics.mean(values):.1f}"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=[p for p in PRESETS if p in ("reviews", "headlines")])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="of each search")
    parser.add_argument("--prompt-len", type=int, default=5)
    parser.add_argument("--few-shot-steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    setting, seeds = Setting(args.prompt_len, args.seconds), range(args.seeds)
    presets = args.presets or ["reviews", "headlines"]
    rows = [*compare(setting, presets, seeds), *few_shot(setting, presets, seeds, args.few_shot_steps)]
    print_table(rows)
    if args.out:
        write(args.out, rows)


if __name__ == "__main__":
    main()
