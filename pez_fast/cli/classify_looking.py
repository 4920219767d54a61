"""The commands `pez-fast classify evaluate` and `pez-fast classify transfer`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pez_fast.cli.classify import classify
from pez_fast.cli.classify_options import (
    EXAMPLES,
    ExampleFlags,
    LanguageModelName,
    Source,
    check_models,
    load_language_model,
    model_of,
)
from pez_fast.cli.options import option, with_flags
from pez_fast.report.console import print_json, say
from pez_fast.report.output import check_file

if TYPE_CHECKING:
    from pez_fast.result import ClassifierScores
    from pez_fast.tasks.labelled_task import Labelled

PREDICTED = "predicted"  # the last column of a table of predictions


@classify.command()
@with_flags(ExampleFlags, EXAMPLES)
def evaluate(
    source: Source,
    search: ExampleFlags,
    model: LanguageModelName = None,
    prompt: Annotated[str, option("The prompt. Default: none, which is the template alone.", show_default=False)] = "",
    predictions: Annotated[
        Path | None, option("Write texts, label and predicted label of each row.", metavar="FILE.csv")
    ] = None,
) -> None:
    """Show how well a prompt serves a language model: accuracy, loss, perplexity and the table of confusion."""
    from pez_fast.report.classify_console import show_scores
    from pez_fast.tasks.labelled_task import scores_of

    if predictions is not None:
        check_file(predictions, "table", ".csv", [source], "a file", _is_table)
    data = search.read(source)
    lm = load_language_model(model_of(model, source), search.device)
    scores = scores_of(prompt, lm, data, search.labels().calibrate)
    if search.as_json:
        print_json(scores.to_dict())
    else:
        show_scores(scores)
    if predictions is not None:
        write_predictions(predictions, data, scores, search.column(source))
        say(f"{len(scores.predictions)} predictions written to {predictions}")


@classify.command()
@with_flags(ExampleFlags, EXAMPLES)
def transfer(
    source: Source,
    search: ExampleFlags,
    model: Annotated[list[str], option("A model, as for learn; can be repeated.", metavar="MODEL")],
    prompt: Annotated[list[str] | None, option("A prompt; can be repeated.")] = None,
    file: Annotated[
        Path | None,
        option("Prompts of learn --json or sweep --json, or a run of a sweep.", "--from", metavar="FILE.json"),
    ] = None,
) -> None:
    """Show how well prompts serve language models that they were not learned for, as text."""
    from pez_fast.report.classify_console import show_transfer, without_predictions
    from pez_fast.tasks import transfer as transfer_all

    texts = list(dict.fromkeys([*(prompt or []), *(prompts_of(file) if file is not None else [])]))
    if not texts:
        raise ValueError("--prompt TEXT or --from FILE.json must be given")
    data = search.read(source)
    if len(model) > 1:
        check_models(model)
    scores: list[ClassifierScores] = []
    for name in model:
        lm = load_language_model(name, search.device)
        scores += transfer_all(
            texts,
            lm,
            data.rows,
            data.template.text,
            data.verbalizer,
            label=search.column(source),
            calibrate=search.labels().calibrate,
        )
    if search.as_json:
        print_json([without_predictions(each) for each in scores])
    else:
        show_transfer(texts, model, scores)


def prompts_of(file: Path) -> list[str]:
    """Returns the prompts in a file of `learn --json` or `sweep --json`, or of one run.

    Raises:
        ValueError: the file cannot be read, or holds no prompt.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"the file {file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file {file} is no JSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("results", value.get("result", value))
    found = [prompt for result in (value if isinstance(value, list) else [value]) for prompt in _prompts(result)]
    if not found:
        raise ValueError(f"the file {file} holds no prompt; learn --json and sweep --json print such files")
    return found


def _prompts(result: Any) -> list[str]:
    """Returns the prompts of a result: its best ones, or its one."""
    if not isinstance(result, dict):
        return []
    top = result.get("top") or [result]
    texts = [each.get("prompt") for each in top if isinstance(each, dict)] if isinstance(top, list) else []
    return [text for text in texts if isinstance(text, str)]


def write_predictions(file: Path, data: Labelled, scores: ClassifierScores, label: str) -> None:
    """Writes each row's columns of text, its label and the predicted label."""
    names = [*data.template.columns, label, PREDICTED]
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(names)
        for row, predicted in zip(data.rows, scores.predictions, strict=True):
            writer.writerow([*(row[name] for name in names[:-1]), predicted])


def _is_table(file: Path) -> bool:
    """Whether a file is a table of predictions, or is empty."""
    with file.open("rb") as opened:
        first = opened.readline(4096).decode("utf-8", "replace").strip()
    return not first or first.endswith(f",{PREDICTED}")
