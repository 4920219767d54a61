"""Pipelines of diffusers: loading, and checks of what is handed in as one."""

from __future__ import annotations

import inspect
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from pez_fast._shared.installation import install_hint
from pez_fast.models.loading import checked_device, checked_name, quiet
from pez_fast.models.reasons import load_failure, quoted


def import_diffusers() -> Any:
    """Returns the module diffusers, or raises an ImportError that says what to install."""
    try:
        import diffusers
    except Exception as error:  # a package built for another torch raises what it likes
        hint = f"({quoted(error)}); {install_hint('diffusion')}"
        raise ImportError(f"diffusers cannot be imported {hint}") from error
    return diffusers


def _transformers_logging() -> Any:
    """Returns the module that decides on the progress bars of transformers, which loads a pipeline's text encoders."""
    try:
        from transformers.utils import logging
    except Exception as error:
        raise ImportError(f"transformers cannot be imported ({quoted(error)}); {install_hint('diffusion')}") from error
    return logging


def load_pipeline(name: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Loads a text-to-image pipeline of diffusers (the extra "diffusion"), without its progress bar.

    Args:
        name: a folder that `save_pretrained` wrote, or a name on the Hugging Face hub, as "owner/repo". Code that comes
            with a pipeline is not run.
        device: default CUDA where there is one, else the CPU.
        dtype: the dtype of the weights.

    Returns:
        The pipeline, of diffusers' own class.

    Raises:
        ValueError: there is no such pipeline, or it cannot be had here; the sentence says why.
        ImportError: diffusers cannot be imported; the message says what to install.
    """
    name, device = checked_name(name), checked_device(device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype of torch; got {dtype!r}")
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(f"name={name!r} holds no model_index.json, which every pipeline of diffusers has")
    diffusers = import_diffusers()
    source = str(folder) if folder.is_dir() else name
    loggers = [diffusers.utils.logging, _transformers_logging()]
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()] if folder.is_dir() else []
    for logger in shown:
        logger.disable_progress_bar()  # of reading files; downloads have their own
    try:
        with quiet():
            pipeline = diffusers.DiffusionPipeline.from_pretrained(source, torch_dtype=dtype)
    except Exception as error:  # hub, file and network errors come in many classes; all mean that it cannot be had
        raise ValueError(f"name={name!r} could not be downloaded or read: {load_failure(error)}") from error
    finally:
        for logger in shown:
            logger.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def takes(pipeline: Any) -> list[str]:
    """Returns the names of the arguments that a pipeline is called with."""
    return list(inspect.signature(type(pipeline).__call__).parameters)[1:]


def check_pipeline(pipeline: Any, *needed: str) -> None:
    """Checks that a text-to-image pipeline is one, and has the parts that a task needs.

    Raises:
        TypeError: it is none.
        ValueError: it lacks a part; the message names it.
    """
    if isinstance(pipeline, type) or not callable(pipeline) or not hasattr(pipeline, "components"):
        kind = pipeline.__name__ if isinstance(pipeline, type) else type(pipeline).__name__
        raise TypeError(f"pipeline must be a pipeline of diffusers, as load_pipeline returns; got {kind}")
    if "prompt" not in takes(pipeline):
        raise ValueError(f"pipeline must make images from a prompt; {type(pipeline).__name__} takes none")
    for name in needed:
        if getattr(pipeline, name, None) is None:
            raise ValueError(f"pipeline must have a {name}; this {type(pipeline).__name__} has none")


def tokenizers_of(pipeline: Any) -> list[Any]:
    """Returns the pipeline's tokenizers, in the order of its text encoders."""
    found = [getattr(pipeline, f"tokenizer{end}", None) for end in ("", "_2", "_3")]
    return [tokenizer for tokenizer in found if tokenizer is not None]


def check_fits(pipeline: Any, prompt: Any, name: str = "prompt") -> None:
    """Checks that a prompt is a text that every text encoder reads to its end.

    Raises:
        TypeError: it is no text.
        ValueError: it is too long; diffusers would cut it.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"{name} must be a text; got {type(prompt).__name__}")
    for tokenizer in tokenizers_of(pipeline):
        length = len(tokenizer(prompt, verbose=False)["input_ids"])
        if length > tokenizer.model_max_length:
            raise ValueError(
                f"{name} must have at most {tokenizer.model_max_length} tokens, special ones included, which is what "
                f"the pipeline's text encoder reads; {shorten(prompt, 60, placeholder=' …')!r} has {length}"
            )
