"""The command `pez-fast`. Results go to stdout, all else to stderr; torch is imported only where a command needs it."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from pez_fast import __version__
from pez_fast.live import LiveProgress, PlainProgress, print_info, print_json, say, show_many, show_one, watch

if TYPE_CHECKING:
    from pez_fast.encoders import ClipEncoder
    from pez_fast.result import PromptResult

FAILED, USAGE, INTERRUPTED = 1, 2, 130
PAPER_MODEL, PAPER_WEIGHTS = "ViT-H-14", "laion2b_s32b_b79k"
DEMO_LENGTH, DEMO_RESTARTS = 8, 8


class _Group(TyperGroup):
    """Every error as one line on stderr, and the exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a prompt can hold what the locale cannot print
        extra["standalone_mode"] = False
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"pez-fast: warning: {message}")
            try:
                code = super().main(args, "pez-fast", **extra)
            except Exception as error:  # whatever it is, the user of a command gets a sentence
                code = _complain(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("pez-fast: error: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where typer still ends quietly if nobody reads it


def _complain(error: Exception) -> int:
    usage = getattr(error, "format_message", None)  # one of typer's own has it
    sentence = " ".join(str(usage() if usage else error).split())
    foreseen = usage is not None or isinstance(error, (ValueError, TypeError, ImportError))
    if not foreseen or not sentence:
        sentence = f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
    say(f"pez-fast: error: {sentence}")
    return USAGE if foreseen else FAILED


app = typer.Typer(cls=_Group, add_completion=False, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip


class Engine(str, Enum):
    """Where a data set is learned."""

    local = "local"
    ray = "ray"


class Tokens(str, Enum):
    """Which tokens may be learned."""

    stable = "stable"
    full = "full"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


Steps = Annotated[int, _option("Updates.")]
Seed = Annotated[int, _option("Of the random tokens that the search begins at.")]
Json = Annotated[bool, _option("Print JSON, and only that, on stdout.", "--json")]


@dataclass
class Search:
    """The options that invert, batch and distill share."""

    model: Annotated[str, _option("A name of open_clip's, hf-hub:owner/repo, a folder, or emoji: the bundled one.")] = PAPER_MODEL
    pretrained: Annotated[str | None, _option(f"Tag or file of its weights; {PAPER_WEIGHTS} for {PAPER_MODEL}.")] = None
    device: Annotated[str | None, _option("Such as cpu; cuda where there is one.")] = None
    steps: Steps = 3000
    seed: Seed = 0
    lr: Annotated[float, _option("Learning rate of AdamW.")] = 0.1
    weight_decay: Annotated[float, _option("Weight decay of AdamW.")] = 0.1
    restarts: Annotated[int, _option("Prompts tried for each target, in one batch; the best is kept.")] = 1
    polish: Annotated[int, _option("Rounds at the end in which single tokens are exchanged; 0: as PEZ found it.")] = 32
    prefix: Annotated[str, _option("Fixed text before the learned tokens.")] = ""
    suffix: Annotated[str, _option("Fixed text behind the learned tokens.")] = ""
    init: Annotated[str | None, _option("A text to begin at, in place of random tokens.")] = None
    ban: Annotated[list[str] | None, _option("A word that must not be learned; can be repeated.")] = None
    vocabulary: Annotated[Tokens, _option("stable: only tokens that survive being typed in again.")] = Tokens.stable
    patience: Annotated[int | None, _option("End after so many steps without improvement.")] = None
    dtype: Annotated[str | None, _option("Of the text tower during the search: float32, bfloat16, float16; the fastest that keeps quality.")] = None
    as_json: Json = False

    def options(self, **more: Any) -> dict[str, Any]:
        """The options of the library's tasks, checked before anything slow begins."""
        from pez_fast.options import Options

        same = ("steps", "seed", "lr", "weight_decay", "restarts", "polish", "prefix", "suffix", "init", "patience", "dtype")
        given = {name: getattr(self, name) for name in same}
        given |= {"banned": tuple(self.ban or ()), "vocabulary": self.vocabulary.value, **more}
        Options(**given)
        return given

    def load(self) -> ClipEncoder:
        """The model; says so before, since it can take a minute."""
        import torch

        from pez_fast.encoders import load_clip

        try:
            device = torch.device(self.device) if self.device else None
        except RuntimeError:
            raise ValueError(f"device must be a device of torch, such as cuda or cpu; got {self.device!r}") from None
        if device is not None and device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} cannot be used: torch finds no CUDA device here")
        say(f"loading the model {self.model}" + (f" with {self.weights}" if self.weights else ""))
        return load_clip(self.model, self.weights, device)

    @property
    def weights(self) -> str | None:
        """`pretrained`, or what it is by default."""
        return PAPER_WEIGHTS if self.model == PAPER_MODEL and self.pretrained is None else self.pretrained


def _with_search(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `Search` as options of its own; it receives them as its argument `search`."""
    own = inspect.signature(command, eval_str=True).parameters
    hints = get_type_hints(Search, include_extras=True)
    shared = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name],
                                default=inspect.Parameter.empty if f.default is MISSING else f.default)
              for f in fields(Search)]  # fmt: skip

    @wraps(command)
    def run(**given: Any) -> None:
        command(search=Search(**{p.name: given.pop(p.name) for p in shared}), **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values() if p.name != "search"] + shared
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Annotated[bool, _option("Print the version.", "--version")] = False) -> None:
    """Learn prompts, made of real words, from pictures and texts (PEZ)."""
    if version:
        print(f"pez-fast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    steps: Steps = 300,
    seed: Seed = 0,
    out: Annotated[Path, _option("Where the sheet is written.", metavar="FILE.png")] = Path("pez_fast_demo.png"),
    as_json: Json = False,
) -> None:
    """Learn a prompt for each of the example pictures with the small bundled model, and draw a sheet of them."""
    from pez_fast.encoders.clip import BUNDLED
    from pez_fast.images import load_image
    from pez_fast.sheet import check_writable, write_sheet
    from pez_fast.tasks import invert_batch

    search = Search(model="emoji", steps=steps, seed=seed, restarts=DEMO_RESTARTS)
    options = search.options(prompt_len=DEMO_LENGTH)
    check_writable(out)
    files = sorted((BUNDLED["emoji"] / "pictures").glob("*.png"))
    if not files:
        raise ValueError("the bundled model and its pictures are not part of this installation")
    names, images = [file.stem for file in files], [load_image(file) for file in files]
    clip = search.load()
    with watch(names, steps) as progress:
        results = invert_batch(images, clip, **options, **_watched(progress))
    show_many(names, results, as_json)
    if write_sheet(out, names, [[image] for image in images], results):
        say(f"sheet written to {out}")
    _finish(results, steps)


@app.command()
@_with_search
def invert(
    images: Annotated[list[str], typer.Argument(help="Picture files.", metavar="IMAGE", show_default=False)],
    search: Search,
    each: Annotated[bool, _option("One prompt for each picture, in place of one for all of them.", "--each")] = False,
    prompt_len: Annotated[int, _option("Tokens to learn.")] = 16,
    weight: Annotated[list[float] | None, _option("One for each picture; a negative one pushes the prompt away from it.")] = None,
    sheet: Annotated[Path | None, _option("Draw pictures, prompts and scores into this PNG file.", metavar="FILE.png")] = None,
) -> None:
    """Learn a prompt from pictures: one for all that they share, or with --each one for each."""
    from pez_fast.images import load_image
    from pez_fast.sheet import check_writable, write_sheet
    from pez_fast.tasks import invert as invert_all
    from pez_fast.tasks import invert_batch

    options = search.options(prompt_len=prompt_len)
    if weight and each:
        raise ValueError("--weight and --each exclude each other")
    if weight and len(weight) != len(images):
        raise ValueError(f"--weight must be given once for each of the {len(images)} images; got {len(weight)}")
    opened: list[Any] = []
    for path in images:
        try:
            opened.append(load_image(path))
        except ValueError:
            if not each:
                raise
            opened.append(path)  # the library makes the row that says why
    if sheet is not None:
        check_writable(sheet)
    clip = search.load()
    readable = [path for path, image in zip(images, opened, strict=True) if image is not path]
    names = images if each else [images[0] if len(images) == 1 else f"{len(images)} pictures"]
    with watch(readable if each else names, search.steps) as progress:
        if each:
            results = invert_batch(opened, clip, **options, **_watched(progress))
        else:
            results = [invert_all(opened, clip, weights=weight, **options, **_watched(progress))]
    if each:
        show_many(names, results, search.as_json)
    else:
        show_one(results[0], search.as_json)
    if sheet is not None:
        pictures = [[i] if i is not path else [] for i, path in zip(opened, images, strict=True)] if each else [opened]
        if write_sheet(sheet, [Path(name).name for name in names], pictures, results):
            say(f"sheet written to {sheet}")
    _finish(results, search.steps)


@app.command()
@_with_search
def batch(
    source: Annotated[Path, typer.Argument(help="A folder, a text file of paths, a .parquet or .tar file.", metavar="SOURCE", show_default=False)],
    search: Search,
    out: Annotated[Path, _option("Folder of the results: Parquet files, and what they were made with.", metavar="DIR")],
    prompt_len: Annotated[int, _option("Tokens to learn.")] = 16,
    batch_size: Annotated[int, _option("Pictures learned at once.")] = 64,
    shard: Annotated[str, _option("Only every n-th picture from the i-th on, i from 0, for n runs into one DIR.", metavar="i/n")] = "0/1",
    workers: Annotated[int, _option("Threads that read pictures ahead.")] = 4,
    column: Annotated[str | None, _option("Of a Parquet file: bytes or paths of the pictures.")] = None,
    engine: Annotated[Engine, _option("ray: on the machines of a Ray cluster, which share DIR.")] = Engine.local,
    actors: Annotated[int, _option("With --engine ray: processes, one GPU each where there are any.")] = 1,
) -> None:
    """Learn a prompt for each picture of a data set; started again, it continues."""
    from pez_fast.dataset import Job

    job = Job(source, out, search.options(prompt_len=prompt_len), batch_size, shard, workers, column)
    if engine is Engine.ray:
        from pez_fast.ray import run_on_ray

        summary = run_on_ray(job, search.model, search.weights, search.device, actors)
    else:
        summary = job.run(search.load())
    if search.as_json:
        print_json(vars(summary))
    say(f"{summary.finished} of {summary.pictures} pictures finished in {out}, {summary.errors} of them unreadable")
    if summary.interrupted:
        say("pez-fast: interrupted; the same command continues")
        raise typer.Exit(INTERRUPTED)
    if summary.errors:
        raise typer.Exit(FAILED)


@app.command()
@_with_search
def distill(
    text: Annotated[str, typer.Argument(help="The prompt to shorten.", metavar="TEXT", show_default=False)],
    search: Search,
    ratio: Annotated[float | None, _option("Tokens of the result over tokens of the text; 0.3.")] = None,
    prompt_len: Annotated[int | None, _option("The number of tokens itself, in place of a ratio.")] = None,
) -> None:
    """Learn a shorter prompt that means the same to the model."""
    from pez_fast.tasks import distill as distill_text

    options = search.options(prompt_len=1 if prompt_len is None else prompt_len)
    if ratio is not None and prompt_len is not None:
        raise ValueError("--ratio and --prompt-len exclude each other")
    clip = search.load()
    with watch([text], search.steps) as progress:
        result = distill_text(text, clip, ratio, **options | {"prompt_len": prompt_len}, **_watched(progress))
    show_one(result, search.as_json)
    _finish([result], search.steps)


@app.command()
def info(as_json: Json = False) -> None:
    """Show which implementations can be used here, and why the others cannot."""
    from pez_fast.information import info as facts

    if as_json:
        print_json(facts(), indent=2)
    else:
        print_info(facts())


def _watched(progress: PlainProgress | LiveProgress) -> dict[str, Any]:
    return {"callback": progress, "every": progress.every}


def _finish(results: Sequence[PromptResult], steps: int) -> None:
    """Say what was not as it should be, and exit accordingly."""
    if any(result.stopped == "interrupt" for result in results):
        say(f"pez-fast: interrupted after {max(r.steps for r in results)} of {steps} steps; this is the best so far")
        raise typer.Exit(INTERRUPTED)
    if any(result.error for result in results):
        raise typer.Exit(FAILED)


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
