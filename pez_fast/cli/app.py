"""The command `pez-fast` itself, and what its commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pez_fast import __version__
from pez_fast.cli.errors import FAILED, INTERRUPTED, Group
from pez_fast.cli.options import option
from pez_fast.report.console import say

if TYPE_CHECKING:
    from pez_fast.result import PromptResult

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Annotated[bool, option("Print the version.", "--version")] = False) -> None:
    """Learn prompts, made of real words, from images and texts (PEZ)."""
    if version:
        print(f"pez-fast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


def watched(progress: Any) -> dict[str, Any]:
    """Returns the options that make a search call `progress`."""
    return {"callback": progress, "every": progress.every}


def finish(results: Sequence[PromptResult], steps: int) -> None:
    """Says whether the search was interrupted, and exits with the code for interruptions or errors."""
    if any(result.stop_reason == "interrupt" for result in results):
        say(f"pez-fast: interrupted after {max(r.steps for r in results)} of {steps} steps; this is the best so far")
        raise typer.Exit(INTERRUPTED)
    if any(result.error for result in results):
        raise typer.Exit(FAILED)


def check_history(history: bool, as_json: bool) -> None:
    """Raises ValueError if the history is asked for where it is not shown."""
    if history and not as_json:
        raise ValueError("--history has an effect only with --json")
