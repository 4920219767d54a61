"""Loading of open_clip models by name, from a folder or a hub, and of the bundled model."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pez_fast._shared import catalog
from pez_fast.models.arguments import checked_device, checked_dtype, checked_name, quiet
from pez_fast.models.clip import ClipEncoder
from pez_fast.models.familiar import Familiar
from pez_fast.models.hf_clip import HFClipEncoder
from pez_fast.models.hf_loading import load_hf_clip
from pez_fast.models.hub import can_be_reached, without_waiting
from pez_fast.models.reasons import load_failure, not_here, quoted

BUNDLED = {"emoji": Path(__file__).parents[1] / "assets" / "emoji"}


def load_clip(
    name: str | os.PathLike,
    pretrained: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> ClipEncoder | HFClipEncoder:
    """Loads a CLIP that open_clip can build, or a CLIP-like model of transformers.

    Args:
        name: a short name that `pez-fast models` lists, such as "sd15" or "small"; "emoji" is the small model that
            comes with this package. Or a name of `open_clip.list_models()`, "hf-hub:owner/repo", "local-dir:folder",
            or a folder's path ("./small" where a short name is a folder too). "hf:owner/repo" is a model of
            transformers on the hub, and a folder without open_clip_config.json, or "hf:folder", one that
            `save_pretrained` wrote: a CLIPModel, SiglipModel, Siglip2Model or CLIPTextModelWithProjection, with its
            tokenizer and image processor. The last takes images with a CLIPVisionModelWithProjection in the folder's
            own folder image_encoder.
        pretrained: for a name of open_clip's, a tag of its weights or the path of a checkpoint; for a short name, other
            weights than its own.
        device: the device of the model. Default: CUDA if there is one, else the CPU.
        dtype: the dtype of the model's weights.

    Returns:
        A frozen `ClipEncoder`, or an `HFClipEncoder` for a model of transformers.

    Raises:
        ValueError: there is no such model, tag or file, or the weights cannot be downloaded or read.
        ImportError: open_clip or transformers cannot be imported; the message says what to install.
    """
    name, pretrained, device = checked_name(name), _checked_pretrained(pretrained), checked_device(device)
    short = catalog.find(name)
    if short is not None and name not in BUNDLED:
        name, pretrained = short.model, pretrained or short.pretrained
    dtype = checked_dtype(dtype)
    if _of_transformers(name):
        if pretrained is not None:
            raise ValueError(_brings_its_own(name, pretrained))
        return load_hf_clip(name, device, dtype)
    folder, listed = _folder(name), catalog.entry_of(name, pretrained)
    if listed is not None and not listed.is_here() and not can_be_reached():  # said before open_clip, which is slow
        raise ValueError(_failure(name, pretrained, not_here()))
    open_clip = import_open_clip()
    if pretrained is not None and (folder is not None or name.startswith("hf-hub:")):
        raise ValueError(_brings_its_own(name, pretrained))
    model, tokenizer = _built(open_clip, name, pretrained, folder, device)
    settings = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    preprocess = open_clip.transform.image_transform_v2(settings, is_train=False)
    shown = f"{name}/{pretrained}" if pretrained else name
    return ClipEncoder(model.to(dtype), tokenizer, preprocess, shown, _known_ids(folder), Familiar.load(folder))


def _built(open_clip: Any, name: str, pretrained: str | None, folder: Path | None, device: torch.device) -> Any:
    """Returns open_clip's model and its tokenizer."""
    named = folder is None and not name.startswith("hf-hub:")
    quick_gelu = _check_name(open_clip, name, pretrained) if named else False
    source = name if folder is None else f"local-dir:{folder}"
    try:
        with quiet(), nullcontext() if folder is not None else without_waiting():
            model = open_clip.create_model(
                source,
                pretrained=pretrained,
                device=device,
                precision="fp32",
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
            )
            return model, open_clip.get_tokenizer(source)
    except Exception as error:  # errors of hubs, files and networks have many classes
        raise ValueError(_failure(name, pretrained, load_failure(error))) from error


def _of_transformers(name: str) -> bool:
    """Whether a name stands for a model of transformers."""
    if name.startswith("hf:"):
        return True
    saved = [(Path(name) / file).is_file() for file in ("open_clip_config.json", "config.json")]
    return name not in BUNDLED and saved == [False, True]


def _brings_its_own(name: str, pretrained: str) -> str:
    return f"pretrained={pretrained!r} does not go with name={name!r}, which brings its own weights"


def _failure(name: str, pretrained: str | None, reason: str) -> str:
    tag = f" with pretrained={pretrained!r}" if pretrained else ""
    return f"name={name!r}{tag} could not be downloaded or read: {reason}"


def _checked_pretrained(pretrained: object) -> str | None:
    if pretrained is None:
        return None
    if not isinstance(pretrained, (str, os.PathLike)):
        raise ValueError(f"pretrained must be a tag or the path of a checkpoint; got {pretrained!r}")
    return str(os.fspath(pretrained))


def _folder(name: str) -> Path | None:
    """Returns the folder that a name stands for, or None if it stands for a model of open_clip or of a hub."""
    folder = BUNDLED.get(name)
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
    elif folder is None and Path(name).is_dir():
        folder = Path(name)
    if folder is not None and not (folder / "open_clip_config.json").is_file():
        raise ValueError(f"name={name!r} holds no open_clip_config.json, nor a model that transformers has saved")
    return folder


def _known_ids(folder: Path | None) -> list[int] | None:
    """Returns the tokens that the model in a folder was trained on, or None if the folder does not list them."""
    if folder is None or not (folder / "tokens.json").is_file():
        return None
    return json.loads((folder / "tokens.json").read_text())["tokens_seen"]


def _check_name(open_clip: Any, name: str, pretrained: str | None) -> bool:
    """Returns whether QuickGELU must be forced; raises ValueError where open_clip would only warn."""
    if name in catalog.JOINT:
        raise ValueError(f"name={name!r} stands for several encoders, which load_joint({name!r}) loads as one model")
    if name not in open_clip.list_models():
        close = catalog.close_names(name) + [m for m in open_clip.list_models() if name.lower() in m.lower()]
        hint = f"; did you mean {', '.join(close[:5])}?" if close else "; `pez-fast models` lists the short names"
        raise ValueError(f"name={name!r} is no short name, no model of open_clip and no folder{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"pretrained must be given for {name}: a checkpoint's path, "
            f"or one of {', '.join(tags) or 'no tags'}; got None"
        )
    if Path(pretrained).is_file():
        return False
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        raise ValueError(
            f"pretrained={pretrained!r} is neither a file nor a tag of {name}; its tags are {', '.join(tags) or 'none'}"
        )
    built, trained = bool(open_clip.get_model_config(name).get("quick_gelu")), bool(config.get("quick_gelu"))
    if built and not trained:
        raise ValueError(
            f"pretrained={pretrained!r} was trained with GELU; use name={name.removesuffix('-quickgelu')!r}"
        )
    return trained


def import_open_clip() -> Any:
    """Returns the module open_clip, or raises an ImportError that says what to install."""
    try:
        import open_clip
    except Exception as error:
        if "torchvision" in str(error):
            raise ImportError(
                "open_clip cannot be imported because torchvision was built for another torch; "
                "install torch and torchvision together from the same source, both CUDA or both CPU builds"
            ) from error
        raise ImportError(
            f"open_clip cannot be imported ({quoted(error)}); pip install 'open_clip_torch>=3,<5'"
        ) from error
    if "__call__" not in vars(open_clip.SimpleTokenizer):
        raise ImportError(
            f"open_clip was imported from {Path(open_clip.__file__).parent}, an old copy that hides the installed one; "
            "rename that folder, or run from another one"
        )
    return open_clip
