"""The command `pez-fast generate`: images from learned prompts."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from pez_fast._shared.catalog import DEFAULT_MODEL
from pez_fast.cli.app import app
from pez_fast.cli.inputs import read_images
from pez_fast.cli.options import Device, Json, Model, Pretrained, SearchFlags, option
from pez_fast.report.console import one_line, print_json, say
from pez_fast.report.output import put

DTYPES = ("float32", "bfloat16", "float16")
SOFTWARE = "pez_fast generate"  # how an image that may be replaced is known again
Pipeline = Annotated[
    str, option("A folder with a text-to-image pipeline of diffusers, or its name on the Hugging Face hub.")
]


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts.", metavar="PROMPT", show_default=False)] = None,
    pipeline: Pipeline = "",
    out: Annotated[
        Path, option("The image; several are written beside it with numbers, as out-1.png.", metavar="FILE.png")
    ] = Path("out.png"),
    results: Annotated[
        Path | None, option("Take the prompts from what `pez-fast invert --json` printed.", metavar="FILE.json")
    ] = None,
    prompt_2: Annotated[str | None, option("What the second text encoder of Stable Diffusion XL reads.")] = None,
    num_images: Annotated[int, option("Images for each prompt.")] = 1,
    seed: Annotated[int, option("The seed of the first image; the next ones follow.")] = 0,
    num_inference_steps: Annotated[int | None, option("Steps of the pipeline's scheduler. Default: its own.")] = None,
    guidance_scale: Annotated[float | None, option("Weight of the prompt. Default: the pipeline's own.")] = None,
    negative_prompt: Annotated[str | None, option("What the images should not show.")] = None,
    image: Annotated[
        list[str] | None, option("An original image, to compare with by --model; can be repeated.", metavar="IMAGE")
    ] = None,
    sheet: Annotated[
        Path | None, option("Draw originals, prompts and generated images into this PNG file.", metavar="FILE.png")
    ] = None,
    model: Model = DEFAULT_MODEL,
    pretrained: Pretrained = None,
    device: Device = None,
    dtype: Annotated[str, option(f"Of the pipeline's weights: one of {', '.join(DTYPES)}.")] = DTYPES[0],
    as_json: Json = False,
) -> None:
    """Make images from prompts with a text-to-image pipeline of diffusers."""
    texts = _texts(prompts or [], results)
    check_pipeline_options(pipeline, dtype)
    files = _files(out, len(texts), num_images)
    _check_files(files, sheet, image or [])
    originals = read_images(image or [])
    texts = texts if prompt_2 is None else [(text, prompt_2) for text in texts]
    scoring = {}
    if originals:
        search = SearchFlags(model=model, pretrained=pretrained, device=device)
        scoring = {"clip": search.load(), "images": [originals] * len(texts)}
    scheduled = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    settings = {"num_images": num_images, "seed": seed, **scheduled, "negative_prompt": negative_prompt}
    made = _made(texts, pipeline, device, dtype, {**scoring, **settings})
    _write(made, files)
    _show(made, files, as_json)
    if sheet is not None:
        from pez_fast.report.generated_sheet import write_generated

        write_generated(sheet, made, [originals] * len(made), f"pipeline {pipeline}, seed {seed}")
        say(f"sheet written to {sheet}")


def check_pipeline_options(pipeline: str, dtype: str, dtype_name: str = "--dtype") -> None:
    """Raises ValueError if no pipeline is named, or its dtype is unknown."""
    if not pipeline.strip():
        raise ValueError("--pipeline must name a folder or a pipeline on the hub")
    if dtype not in DTYPES:
        raise ValueError(f"{dtype_name} must be one of {', '.join(DTYPES)}; got {dtype!r}")


def loaded_pipeline(pipeline: str, device: str | None, dtype: str) -> Any:
    """Loads a pipeline, and says so first."""
    import torch

    from pez_fast.models.diffusion import load_pipeline

    say(f"loading the pipeline {pipeline}")
    return load_pipeline(pipeline, device, getattr(torch, dtype))


def _made(texts: list[Any], pipeline: str, device: str | None, dtype: str, options: dict[str, Any]) -> list[Any]:
    """Loads the pipeline and returns what it makes, one prompt after the other."""
    from pez_fast.tasks import generate as generate_all

    options = {name: value for name, value in options.items() if value is not None}
    loaded, images = loaded_pipeline(pipeline, device, dtype), options.pop("images", None)
    made = []
    for k, text in enumerate(texts):
        original = {} if images is None else {"images": images[k]}
        made.append(generate_all(text, loaded, **options, **original))
        say(f"prompt {k + 1}/{len(texts)}: {len(made[-1].images)} images of {one_line(made[-1].prompt)!r}")
    return made


def _show(made: list[Any], files: list[Path], as_json: bool) -> None:
    """Prints the files, or JSON, on stdout, and the similarities on stderr."""
    names = iter(map(str, files))
    named = [[next(names) for _ in one.images] for one in made]
    if as_json:
        print_json([{**one.to_dict(), "files": own} for one, own in zip(made, named, strict=True)])
    else:
        put("\n".join(name for own in named for name in own))
    for one in made:
        if one.similarity:
            say(f"similarity {mean(one.similarity):.4f} of {one_line(one.prompt)!r}: mean cosine with the originals")
        if one.note:
            say(f"pez-fast: note: {one.note}")


def _texts(prompts: list[str], results: Path | None) -> list[Any]:
    """Returns the prompts of the command line and those of a file of results."""
    texts = list(prompts)
    if results is not None:
        try:
            read = json.loads(results.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"--results {results} cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise ValueError(f"--results {results} holds no JSON, as pez-fast invert --json prints it") from None
        for result in read if isinstance(read, list) else [read]:
            if not isinstance(result, dict) or not isinstance(result.get("prompt"), str):
                raise ValueError(f"--results {results} holds something else than results of pez-fast invert --json")
            if result["prompt"]:
                texts.append(result["prompt"])
    if not texts:
        raise ValueError("give a prompt, or --results with a file that holds some")
    blank = next((text for text in texts if not text.strip()), None)
    if blank is not None:
        raise ValueError(f"a prompt must not be empty; got {blank!r}")
    return texts


def _files(out: Path, prompts: int, num_images: int) -> list[Path]:
    """Returns the files of the images."""
    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1; got {num_images}")
    count = prompts * num_images
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{k + 1}") for k in range(count)]


def _check_files(files: list[Path], sheet: Path | None, originals: list[str]) -> None:
    """Raises ValueError, before anything slow begins, if a file could not be written, or must not."""
    from pez_fast.report.output import check_file
    from pez_fast.report.sheet import check_writable

    for file in files:
        check_file(file, "image", ".png", originals, "an image", _is_ours)
    if sheet is not None:
        check_writable(sheet, [*originals, *files])


def _write(made: list[Any], files: list[Path]) -> None:
    """Writes the images, each with a mark by which `_is_ours` knows it again."""
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    for file, image in zip(files, (image for one in made for image in one.images), strict=True):
        image.save(file, format="PNG", pnginfo=mark)


def _is_ours(path: Path) -> bool:
    """Whether a file is an image that this command wrote, or is empty."""
    from PIL import Image

    try:
        if not path.stat().st_size:
            return True
        with Image.open(path, formats=("PNG",)) as opened:
            return opened.info.get("Software") == SOFTWARE
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
