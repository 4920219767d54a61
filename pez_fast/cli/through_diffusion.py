"""The command `pez-fast invert-diffusion`: prompts for images through a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from pez_fast.cli.app import app, check_history, finish, watched
from pez_fast.cli.generate import DTYPES, Pipeline, check_pipeline_options, loaded_pipeline
from pez_fast.cli.inputs import read_images
from pez_fast.cli.options import (
    SHARED,
    Ban,
    Device,
    History,
    Json,
    Log,
    PromptLen,
    Top,
    option,
    plain_values,
    with_flags,
)
from pez_fast.config import SearchConfig
from pez_fast.report.console import say, show_one, show_prompts
from pez_fast.report.tensorboard import watch


@dataclass
class DiffusionFlags:
    """The options of a search through a diffusion model."""

    pipeline: Pipeline = ""
    pipeline_dtype: Annotated[str, option(f"Of the pipeline's weights: one of {', '.join(DTYPES)}.")] = DTYPES[0]
    device: Device = None
    config: dict[str, Any] = field(default_factory=dict)  # the values of the options in SHARED
    ban: Ban = None
    as_json: Json = False

    def options(self, **more: Any) -> dict[str, Any]:
        """Returns the options for `invert_diffusion`, and checks them before anything slow begins."""
        check_pipeline_options(self.pipeline, self.pipeline_dtype, "--pipeline-dtype")
        given = plain_values(self.config) | {"banned": tuple(self.ban or ()), **more}
        SearchConfig(**given)
        return given


@app.command("invert-diffusion")
@with_flags(DiffusionFlags, SHARED, {"refine": 0})
def invert_diffusion(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, http(s) addresses, or - for stdin.", metavar="IMAGE", show_default=False),
    ],
    search: DiffusionFlags,
    prompt_len: PromptLen = SearchConfig.prompt_len,
    timesteps: Annotated[
        tuple[float, float], option("The lowest and the highest timestep, as shares of all; 1 is pure noise.")
    ] = (0.5, 1.0),
    noises: Annotated[int, option("Noises that are drawn at a step.")] = 4,
    held_out: Annotated[int, option("Noises that score the prompts.")] = 16,
    held_out_every: Annotated[int, option("Steps between two such scores.")] = 10,
    top: Top = SearchConfig.top_k,
    tensorboard: Log = None,
    history: History = False,
) -> None:
    """Learn one prompt for images through a diffusion model's own prediction of noise; wants a GPU."""
    from pez_fast.tasks import invert_diffusion as learn

    options = search.options(prompt_len=prompt_len, top_k=top)
    check_history(history, search.as_json)
    opened = read_images(images)
    steps = search.config["steps"]
    watching = watch([images[0] if len(images) == 1 else f"{len(images)} images"], steps, tensorboard)
    pipeline = loaded_pipeline(search.pipeline, search.device, search.pipeline_dtype)
    own = {"noises": noises, "held_out": held_out, "held_out_every": held_out_every}
    with watching as progress:
        result = learn(opened, pipeline, timesteps=timesteps, **own, **options, **watched(progress))
    if search.as_json:
        show_one(result, True, history)
    else:
        show_prompts(result)
        say(f"noise error {-result.text_score:.4f}, {result.steps} steps in {result.seconds:.1f} s; lower is better")
        if result.note:
            say(f"pez-fast: note: {result.note}")
    finish([result], steps)
