"""Loading of CLIP-like models of transformers, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pez_fast._shared.installation import install_hint
from pez_fast.models.arguments import quiet
from pez_fast.models.hf_clip import KINDS, TEXT, VISION, HFClipEncoder
from pez_fast.models.hub import without_waiting
from pez_fast.models.reasons import load_failure, quoted

IMAGES = "image_encoder"  # the folder of a vision model beside a text model, as diffusers names it
_BY_TYPE = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model", "tokenizer.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def load_hf_clip(name: str, device: torch.device, dtype: torch.dtype) -> HFClipEncoder:
    """Loads a CLIP-like model of transformers.

    Args:
        name: a folder that `save_pretrained` wrote, or "hf:" and a folder or a name on the hub.

    Raises:
        ValueError: there is no such model, it is of another kind, or a part of it is missing or cannot be read.
        ImportError: transformers cannot be imported; the message says what to install.
    """
    try:
        import transformers
        from transformers.utils import logging
    except Exception as error:  # a package built for another torch raises what it likes
        hint = f"({quoted(error)}); {install_hint('lm')}"
        raise ImportError(f"transformers cannot be imported {hint}") from error
    source = source_of(name)
    if not source:
        raise ValueError(f"name must be the name of a model or a folder; got {name!r}")
    folder = Path(source) if Path(source).is_dir() else None
    if folder is not None:
        _check_folder(name, folder)
    bars = logging.is_progress_bar_enabled()
    if folder is not None:
        logging.disable_progress_bar()  # of reading files; downloads have their own
    try:
        with quiet(), without_waiting():
            parts = _read(transformers, source, folder, dtype)
    except _Unsuitable as error:
        raise ValueError(f"name={name!r} {error}") from None
    except Exception as error:  # hub, file and network errors come in many classes; all mean that it cannot be had
        raise ValueError(f"name={name!r} could not be downloaded or read: {load_failure(error)}") from error
    finally:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    model, tokenizer, images, vision = parts
    on_device = [None if part is None else nn.Module.to(part, device) for part in (model, vision)]
    try:
        return HFClipEncoder(on_device[0], tokenizer, images, on_device[1], name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"name={name!r} cannot be used: {error}") from error


class _Unsuitable(Exception):
    """What a folder holds is not what is needed; the end of a sentence."""


def source_of(name: str) -> str:
    """Returns the folder or the name on the hub that a name stands for."""
    return name.removeprefix("hf:")


def _check_folder(name: str, folder: Path) -> None:
    """Raises: ValueError: a folder lacks the configuration or the tokenizer."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"name={name!r} holds no config.json, which every model of transformers has")
    if not _holds(folder, _TOKENIZERS):
        raise ValueError(f"name={name!r} holds no tokenizer; the one of the model must be saved there too")


def _holds(folder: Path, files: tuple[str, ...]) -> bool:
    return any((folder / file).is_file() for file in files)


def _read(transformers: Any, source: str, folder: Path | None, dtype: torch.dtype) -> tuple[Any, Any, Any, Any]:
    """Returns the model, its tokenizer, its image processor and its vision model; the last two can be None."""
    config = transformers.AutoConfig.from_pretrained(source)
    kind = (config.architectures or [_BY_TYPE.get(config.model_type, config.model_type)])[0]
    if kind not in KINDS:
        raise _Unsuitable(f"holds a {kind}; the models of transformers that can be used are {', '.join(KINDS)}")
    vision = None
    if kind == TEXT and folder is not None and (folder / IMAGES).is_dir():
        vision = _weights(transformers, VISION, str(folder / IMAGES), dtype)
    images = None
    if kind != TEXT or vision is not None:
        if folder is not None and not _holds(folder, _PROCESSORS):
            raise _Unsuitable(f"holds no image processor ({_PROCESSORS[0]}), which a model of images needs")
        images = transformers.AutoImageProcessor.from_pretrained(source)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except ImportError as error:
        raise _Unsuitable("has a tokenizer that needs more packages; pip install sentencepiece protobuf") from error
    return _weights(transformers, kind, source, dtype), tokenizer, images, vision


def _weights(transformers: Any, kind: str, source: str, dtype: torch.dtype) -> Any:
    """Returns a model with all its weights."""
    model, told = getattr(transformers, kind).from_pretrained(
        source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    lacking = sorted(str(key) for key in [*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
    if lacking:  # the library fills them with random numbers
        raise _Unsuitable(f"holds a checkpoint that is not one of its {kind}: it lacks {lacking[0]} in this shape")
    return model
