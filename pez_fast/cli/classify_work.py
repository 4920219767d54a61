"""What the commands of `pez-fast classify` do beside the library's tasks: read, check, learn, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pez_fast.cli.app import watched
from pez_fast.cli.classify_options import LearnFlags, Method, load_language_model
from pez_fast.labelled import PRESETS, LabelConfig
from pez_fast.models.language import LabelTask, LanguageModel
from pez_fast.report.classify_console import (
    Accuracies,
    Swept,
    Transferred,
    say_learned,
    say_tested,
    transferred_values,
    without_predictions,
)
from pez_fast.report.console import CLASSIFIERS, say, show_prompts
from pez_fast.report.console import watch as watch_console
from pez_fast.report.output import check_folder
from pez_fast.result import ClassifierResult, ClassifierScores
from pez_fast.tasks.classify import learn_classifier, transfer
from pez_fast.tasks.labelled_task import Labelled, label_task, labelled, scores_of, soft_accuracy


@dataclass(frozen=True)
class Work:
    """Examples that were read and checked before a model is loaded.

    Attributes:
        config: the options of the classification, complete for rows that were read.
        data: the examples to learn from.
        tested: those to test on, or None.
        tasks: the task for each number of shots.
        search: the other options.
    """

    config: LabelConfig
    data: Labelled
    tested: Labelled | None
    tasks: Mapping[int | None, LabelTask]
    search: LearnFlags

    @classmethod
    def prepared(
        cls,
        search: LearnFlags,
        source: str,
        test: str | None,
        shots: Sequence[int | None] | None = None,
        fluencies: Sequence[float] = (),
    ) -> Work:
        """Returns the work that a command line asks for.

        Args:
            search: the options.
            source, test: the examples to learn from and to test on, as the command line names them.
            shots, fluencies: the values of a sweep, which tests nothing.

        Raises:
            ValueError: something cannot be read, or an option has a value that it cannot have.
        """
        given = search.labels()
        settings = [search.labels(shots=count, fluency=share) for count in shots or () for share in fluencies]
        data = search.read(source, test=False)
        label, text = search.column(source), data.template.text
        config = replace(given, split=None, label=label, template=text, verbalizer=data.verbalizer)
        tasks = {each.shots: label_task(data, each, False) for each in settings or [given]}
        test = test or (source if source in PRESETS and not settings else None)
        return cls(config, data, None if test is None else labelled(test, config, test=True), tasks, search)

    @property
    def rows(self) -> dict[str, Any]:
        """The arguments of `transfer` that say what the examples to test on are."""
        assert self.tested is not None
        names = ("template", "verbalizer", "label", "calibrate")
        return {"examples": self.tested.rows, **{name: getattr(self.config, name) for name in names}}

    def learn(self, lm: LanguageModel, progress: Any, options: Mapping[str, Any]) -> ClassifierResult:
        """Learns a prompt."""
        called = watched(Accuracies(progress, self.held_out(self.config.shots)))
        return learn_classifier(self.data.rows, lm, **vars(self.config), **called, **options)

    def held_out(self, shots: int | None) -> int:
        """Returns how many examples choose the prompt."""
        return len(self.tasks[shots].held_out.rows)


@dataclass
class Found:
    """How a learned prompt does on examples that it was not learned from.

    Attributes:
        rows: what these examples are: "test", "held-out", or "" if there are none.
        before, after: the scores of the template alone and of the prompt.
        soft: the accuracy of a soft prompt as it is, or None.
        transferred: the scores with other models.
        interrupted: whether Ctrl-C left some out.
    """

    rows: str = ""
    before: ClassifierScores | None = None
    after: ClassifierScores | None = None
    soft: float | None = None
    transferred: list[Transferred] = field(default_factory=list)
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found on the rows to test on, as plain values."""
        is_test = self.rows == "test" and self.after is not None
        before, after = without_predictions(self.before), without_predictions(self.after)
        test = {"template_alone": before, "prompt": after, "soft_prompt_accuracy": self.soft}
        return {"test": test if is_test else None, "transfer": [transferred_values(each) for each in self.transferred]}


def score_all(work: Work, lm: LanguageModel, result: ClassifierResult, models: Sequence[str], held_out: bool) -> Found:
    """Prints a learned prompt, and scores it on the rows to test on, with its own model and with others.

    Args:
        work, lm: what the prompt was learned with.
        result: what was learned.
        models: the names of the other models.
        held_out: whether the held-out examples are scored where there are none to test on.
    """
    if not work.search.as_json:
        show_prompts(result)
    say_learned(result)
    found = Found()
    try:
        if result.stop_reason != "interrupt":
            _score(found, work, lm, result, models, held_out)
    except KeyboardInterrupt:
        found.interrupted = True
        say("pez-fast: interrupted; the prompt is the one that was learned, and some of its scores are missing")
    say(f"{result.steps} steps in {result.seconds:.1f} s with {result.model}")
    return found


def _score(found: Found, work: Work, lm: Any, result: ClassifierResult, models: Any, held: bool) -> None:
    """Fills in what is found."""
    rows, calibrate = work.tested, work.config.calibrate
    if rows is None and held:
        kept = work.tasks[work.config.shots].held_out
        rows = Labelled(kept.rows, kept.classes, work.data.template, work.data.verbalizer)
    if rows is None:
        return
    found.rows = "held-out" if work.tested is None else "test"
    found.before = scores_of("", lm, rows, calibrate)
    found.after = scores_of(result.prompt, lm, rows, calibrate)
    if found.rows == "test":
        say_tested("test accuracy", found.after, found.before)
    if result.soft_prompt is not None:
        found.soft = soft_accuracy(result, lm, rows, calibrate)
        say(f"{found.rows} accuracy {found.soft:.4f} of the soft prompt as it is, without projection")
    for name in models:
        found.transferred.append(_transferred(work, name, result.prompt))


def _transferred(work: Work, name: str, prompt: str) -> Transferred:
    """Returns how a prompt serves another model; a model that fails is no reason to lose the rest."""
    try:
        other = load_language_model(name, work.search.device)
        after, before = transfer([prompt, ""], other, **work.rows)
    except (ValueError, ImportError, OSError, RuntimeError) as error:  # RuntimeError: no memory
        say(f"pez-fast: error: {error}")
        return Transferred(name, error=" ".join(str(error).split()))
    say_tested(f"transfer to {name}: test accuracy", after, before)
    return Transferred(name, before, after)


def sweep_group(
    work: Work,
    lm: LanguageModel,
    out: Path,
    group: tuple[int, int | None],
    fluencies: Sequence[float],
    seeds: Sequence[int],
    options: Mapping[str, Any],
) -> list[Swept]:
    """Learns what is missing of the prompts of one length and one number of shots, and returns all of them by λ."""
    from pez_fast.dataset.classifiers import Run, learn_classifiers

    length, shots = group
    runs = [Run(length, shots, fluency, seed) for fluency in fluencies for seed in seeds]
    missing = [run for run in runs if not (out / run.name).exists()]
    names = [f"λ {run.fluency:g}, seed {run.seed}" for run in missing]
    if missing:
        say(f"{len(missing)} prompts of {length} tokens from {'all examples' if shots is None else f'{shots} shots'}")
    given = {name: value for name, value in vars(work.config).items() if name not in ("shots", "fluency")}
    with watch_console(names, work.search.steps, CLASSIFIERS) as progress:
        results = learn_classifiers(
            work.data.rows,
            lm,
            out,
            seeds=seeds,
            fluencies=fluencies,
            prompt_lens=[length],
            shots=[shots],
            **given,
            **watched(Accuracies(progress, work.held_out(shots))),
            **options,
        )
    by_fluency = [(fluency, [r for r in results if r.fluency == fluency]) for fluency in fluencies]
    return [Swept(length, shots, fluency, found) for fluency, found in by_fluency]


def check_outputs(
    search: LearnFlags, source: str, test: str | None, sheet: Path | None, save_soft: Path | None
) -> None:
    """Raises ValueError, before anything slow begins, if an output could not be written, or must not."""
    from pez_fast.report.sheet import check_writable

    if sheet is not None:
        check_writable(sheet, [source, *([test] if test else [])])
    if save_soft is not None:
        if search.method is not Method.soft:
            raise ValueError(f"--save-soft has an effect only with --method soft; got --method {search.method.value}")
        check_folder(save_soft)
