"""Many classification prompts of one task, kept in a folder: every combination of seeds, λ, lengths and shots.

Each finished run is a file of its own, written whole or not at all, so that a killed run is continued by the same call.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pez_fast._shared.files import write_atomically
from pez_fast.config import SearchConfig, config_from, takes_config
from pez_fast.dataset.locks import exclusive_lock
from pez_fast.dataset.manifest import check_manifest, ensure_manifest, model_part, search_part
from pez_fast.labelled import LEARNING, LabelConfig, LabelOptions, split_options
from pez_fast.models.fingerprint import text_digest
from pez_fast.models.language import LabelModel, LanguageModel
from pez_fast.objectives import LabelLoss
from pez_fast.prompt_search import PromptSearch, progress_of
from pez_fast.result import ClassifierResult, PromptResult
from pez_fast.tasks.classify import check_lm, checked_config, classifier_result
from pez_fast.tasks.labelled_task import Labelled, label_task, labelled

if TYPE_CHECKING:
    from typing_extensions import Unpack

_STEM = "classifiers"  # of the lock


class Run(NamedTuple):
    """What distinguishes a run from the others of its folder."""

    prompt_len: int
    shots: int | None
    fluency: float
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's file."""
        shots = "all" if self.shots is None else self.shots
        return f"run-len{self.prompt_len}-shots{shots}-fluency{self.fluency:g}-seed{self.seed}.json"


@takes_config(also=LabelConfig, defaults={name: value for name, value in LEARNING.items() if name != "prompt_len"})
def learn_classifiers(  # type: ignore[misc]  # shots replaces the option of that name
    examples: Any,
    lm: LanguageModel,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    fluencies: Sequence[float] = (0.0,),
    prompt_lens: Sequence[int] = (LEARNING["prompt_len"],),
    shots: Sequence[int | None] = (None,),
    **options: Unpack[LabelOptions],
) -> list[ClassifierResult]:
    """Learns a prompt for each combination of seeds, λ, lengths and shots, and keeps each in a folder when it is done.

    Runs of one length and one number of shots share batches. Each result is that of `learn_classifier` alone. The same
    call continues after an interruption; a folder of another configuration is refused.

    Args:
        examples, lm: as for `learn_classifier`.
        out: the folder; it is made if it is not there.
        seeds, fluencies, prompt_lens, shots: the values that are combined; None in `shots` stands for all examples.

    Returns:
        The results of all finished runs, in the order of the combinations: lengths, shots, λ, seeds. After Ctrl-C,
        those that were finished.

    Raises:
        ValueError, TypeError: an argument or an option cannot be used; the message names it.
        FullDiskError: the disk is full; what was written is kept.
    """
    check_lm(lm)
    runs = _runs(prompt_lens, shots, fluencies, seeds)
    own, given = split_options({**options})
    configs = {n: checked_config({**given, "prompt_len": n, "seed": runs[0].seed}, own) for n in prompt_lens}
    data, fluent = labelled(examples, own), any(share > 0 for share in fluencies)
    tasks = {shot: label_task(data, replace(own, shots=shot), fluent) for shot in shots}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    complete = _configuration(lm, data, own, fluent, configs[runs[0].prompt_len])
    check_manifest(folder, complete)
    with exclusive_lock(folder, _STEM):
        ensure_manifest(folder, complete, lm.name)
        found = {run: result for run in runs if (result := _kept(folder / run.name)) is not None}
        for (length, shot), group in itertools.groupby(runs, key=lambda run: (run.prompt_len, run.shots)):
            missing = [run for run in group if run not in found]
            if missing and not _learn(folder, missing, LabelModel(lm, tasks[shot]), data, configs[length], found):
                break
    return [found[run] for run in runs if run in found]


def read_classifiers(out: str | Path) -> list[ClassifierResult]:
    """Returns the finished results in a folder of `learn_classifiers`, in the order of their names."""
    kept = (_kept(path) for path in sorted(Path(out).glob("run-*.json")))
    return [result for result in kept if result is not None]


def _runs(prompt_lens: Sequence[int], shots: Sequence[int | None], fluencies: Any, seeds: Any) -> list[Run]:
    """Returns all combinations, in order and each once."""
    given = {"prompt_lens": prompt_lens, "shots": shots, "fluencies": fluencies, "seeds": seeds}
    for name, values in given.items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__") or not list(values):
            raise ValueError(f"{name} must be a list of at least one value; got {values!r}")
    for seed in seeds:
        config_from({"seed": seed})
    for values in itertools.zip_longest(shots, fluencies, fillvalue=None):
        LabelConfig(shots=values[0], fluency=values[1] or 0)
    shares = [float(share) for share in fluencies]
    return list(dict.fromkeys(Run(*values) for values in itertools.product(prompt_lens, shots, shares, seeds)))


def _configuration(
    lm: LanguageModel, data: Labelled, own: LabelConfig, fluent: bool, config: SearchConfig
) -> dict[str, Any]:
    """Returns what decides on all results of a folder, as plain values."""
    chosen = search_part(config)
    for name in ("seed", "prompt_len"):
        del chosen[name]
    identity = [data.template.text, list(data.verbalizer.words), [dict(row) for row in data.rows], list(data.classes)]
    settings = ("held_out", "minibatch", "held_out_every", "calibrate", "split_seed")
    return {
        **chosen,
        **{name: getattr(own, name) for name in settings},
        "examples": text_digest(repr(identity)),
        "fluency is computed": fluent,
        **model_part(lm, config, str(lm.device)),
    }


def _learn(
    folder: Path, runs: list[Run], model: LabelModel, data: Labelled, config: SearchConfig, found: dict[Run, Any]
) -> bool:
    """Learns runs of one length and one number of shots, in batches, and keeps each; returns whether all were done."""
    search = PromptSearch(model, config)
    shown: list[PromptResult | None] = [None] * len(runs)
    numbers = {run: number for number, run in enumerate(runs)}

    def on_progress(searches: Any) -> object:
        assert config.callback is not None
        return config.callback(progress_of(search.stages, search.bound, shown, searches))

    def targets() -> Iterator[tuple[list[int], LabelLoss, int]]:
        by_seed = sorted(runs, key=lambda run: run.seed)
        for seed, group in itertools.groupby(by_seed, key=lambda run: run.seed):
            members = list(group)
            yield [numbers[run] for run in members], LabelLoss([run.fluency for run in members]), seed

    for results in search.stream(targets(), on_progress if config.callback else None):
        for number, result in results:
            if result.stop_reason in ("interrupt", "callback"):
                continue
            run, shown[number] = runs[number], result
            found[run] = classifier_result(result, model, data, run.fluency, not config.terms)
            text = found[run].to_json(indent=1) + "\n"
            write_atomically(folder / run.name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    return search.stop_reason is None


def _kept(path: Path) -> ClassifierResult | None:
    """Returns the result in a file; None if there is none, or one that cannot be read."""
    try:
        values = json.loads(path.read_text("utf-8"))
        known = {f.name for f in dataclasses.fields(ClassifierResult)}
        return ClassifierResult(**{name: value for name, value in values.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
