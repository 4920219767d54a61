"""The commands `pez-fast classify learn` and `pez-fast classify sweep`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pez_fast.cli.app import app, check_history, finish
from pez_fast.cli.batch import refuse_full_disk
from pez_fast.cli.classify_options import (
    LEARNED,
    SWEPT,
    LearnFlags,
    Method,
    Source,
    check_models,
    listed,
    load_language_model,
    model_of,
    shots_of,
)
from pez_fast.cli.errors import FAILED, INTERRUPTED
from pez_fast.cli.options import History, Log, Top, option, with_flags
from pez_fast.config import SearchConfig
from pez_fast.labelled import LEARNING, LabelConfig
from pez_fast.report.console import CLASSIFIERS, plain_result, print_json, say
from pez_fast.report.tensorboard import watch

classify = typer.Typer(help="Learn prompts that make a language model classify texts, and test them.")
app.add_typer(classify, name="classify")

TestSource = Annotated[
    str | None, option("Examples to test on, as SOURCE. Default: a preset's; else none.", metavar="SOURCE")
]
Transfer = Annotated[list[str] | None, option("Test the prompt on this model too; can be repeated.", metavar="MODEL")]
Sheet = Annotated[Path | None, option("Draw curves, tables and the prompt into this PNG file.", metavar="FILE.png")]
SaveSoft = Annotated[Path | None, option("Folder for the soft prompt of --method soft.", metavar="DIR")]


@classify.command()
@with_flags(LearnFlags, LEARNED, LEARNING)
def learn(
    source: Source,
    search: LearnFlags,
    test: TestSource = None,
    transfer: Transfer = None,
    top: Top = SearchConfig.top_k,
    sheet: Sheet = None,
    tensorboard: Log = None,
    save_soft: SaveSoft = None,
    history: History = False,
) -> None:
    """Learn a prompt from labelled examples; the one with the best accuracy on held-out examples is printed."""
    learned(source, search, test, transfer or (), top, sheet, tensorboard, save_soft, history)


def learned(
    source: str,
    search: LearnFlags,
    test: str | None = None,
    transfer: Sequence[str] = (),
    top: int = SearchConfig.top_k,
    sheet: Path | None = None,
    tensorboard: Path | None = None,
    save_soft: Path | None = None,
    history: bool = False,
) -> None:
    """Learns a prompt and prints it; the arguments are the options of `learn`."""
    from pez_fast.cli.classify_work import Work, check_outputs, score_all

    options = search.options(top_k=top)
    check_history(history, search.as_json)
    check_outputs(search, source, test, sheet, save_soft)
    work = Work.prepared(search, source, test)
    if save_soft is not None:
        from pez_fast.tasks.soft_prompt import check_template, save_soft_prompt

        check_template(work.data.template)
    name = model_of(search.model, source)
    if transfer and work.tested is None:
        raise ValueError("--transfer needs examples to test on; --test SOURCE names them")
    watching = watch([name], search.steps, tensorboard, CLASSIFIERS)
    check_models(transfer)
    lm = load_language_model(name, search.device)
    with watching as progress:
        result = work.learn(lm, progress, options)
    found = score_all(work, lm, result, transfer, sheet is not None)
    if save_soft is not None:
        save_soft_prompt(result, save_soft, lm)
        say(f"soft prompt written to {save_soft}")
    if search.as_json:
        print_json({"result": plain_result(result, history), **found.to_dict()})
    if sheet is not None:
        from pez_fast.report.classify_sheet import write_classifier_sheet

        write_classifier_sheet(sheet, result, found.before, found.after, found.transferred, found.rows)
        say(f"sheet written to {sheet}")
    finish([result], search.steps)
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(each.error for each in found.transferred):
        raise typer.Exit(FAILED)


@classify.command()
@with_flags(LearnFlags, SWEPT, LEARNING)
def sweep(
    source: Source,
    search: LearnFlags,
    out: Annotated[Path, option("Folder of the results, a JSON file for each run.", metavar="DIR")],
    seeds: Annotated[str, option("Seeds, such as 0,1,2 or 0-4.")] = "0",
    fluencies: Annotated[str, option("Values of λ, such as 0,0.003.")] = f"{LabelConfig.fluency:g}",
    prompt_lens: Annotated[str, option("Numbers of learned tokens, such as 5,10.")] = str(LEARNING["prompt_len"]),
    shots: Annotated[str, option("Numbers of examples of each label, such as 1,4,16,all.")] = "all",
) -> None:
    """Learn a prompt for every combination of seeds, λ, lengths and shots; the same command continues it."""
    from pez_fast.cli.classify_work import Work, sweep_group
    from pez_fast.report.classify_console import show_sweep
    from pez_fast.report.output import check_folder

    if search.method is Method.soft:
        raise ValueError("--method soft has no effect on a sweep, which keeps prompts of tokens")
    values = (
        listed(prompt_lens, "--prompt-lens", int),
        listed(shots, "--shots", shots_of, "1,4,16,all"),
        listed(fluencies, "--fluencies", float, "0,0.003"),
        listed(seeds, "--seeds", int),
    )
    options = [search.options(prompt_len=length, seed=seed) for length in values[0] for seed in values[3]][0]
    del options["prompt_len"], options["seed"]
    check_folder(out)
    work = Work.prepared(search, source, None, values[1], values[2])
    lm = load_language_model(model_of(search.model, source), search.device)
    groups, expected = [], len(values[2]) * len(values[3])
    with refuse_full_disk():
        for length, shot in itertools.product(*values[:2]):
            found = sweep_group(work, lm, out, (length, shot), values[2], values[3], options)
            groups += found
            if interrupted := sum(len(group.results) for group in found) < expected:
                break
    if search.as_json:
        results = [plain_result(result, False) for group in groups for result in group.results]
        print_json({"groups": [group.to_dict() for group in groups], "results": results})
    else:
        show_sweep(groups)
    say(f"{sum(len(group.results) for group in groups)} runs finished in {out}")
    if interrupted:
        say("pez-fast: interrupted; the same command continues")
        raise typer.Exit(INTERRUPTED)
