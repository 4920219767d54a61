"""What a folder of results was made with, so that nothing else is mixed into it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from pez_fast.config import SearchConfig
from pez_fast.dataset.shards import write_atomically
from pez_fast.dataset.sources import Source, digest
from pez_fast.encoders import ClipEncoder
from pez_fast.encoders.precision import search_dtype
from pez_fast.version import __version__

NAME = "_manifest.json"  # readers of Parquet folders pass over names that begin with _ or .
_NO_EFFECT = {"batch_size", "callback", "every", "impl", "top_k"}  # every implementation finds the same tokens


def configuration(source: Source, options: SearchConfig) -> dict[str, Any]:
    """All that decides on the results but the model: options and the data set, as plain values."""
    chosen = {
        k: v for k, v in dataclasses.asdict(options).items() if k not in _NO_EFFECT | {"dtype"}
    }  # the model's part
    return {**chosen, "banned": list(options.banned), **{f"source's {k}": v for k, v in source.identity.items()}}


def model_part(clip: ClipEncoder, options: SearchConfig, device: str) -> dict[str, Any]:
    """The model's part: digests of weights, preprocessing and allowed tokens, and the type of device, which rounds its own way."""
    table = clip.table(options.vocabulary, options.banned)
    dtype = search_dtype(options.dtype, clip.dtype, table.dim, torch.device(device))
    return {
        "model's weights": weights_digest(clip.model),
        "preprocessing": digest([re.sub(r" at 0x[0-9a-f]+", "", repr(clip.preprocess))]),
        "allowed tokens": hashlib.sha256(table.allowed.cpu().numpy().tobytes()).hexdigest()[:16],
        "model's dtype": str(clip.dtype).removeprefix("torch."),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
    }


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers, cut to 16 digits."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


def check_manifest(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse what the folder was not made with; `wanted` may be a part of a configuration.

    Raises:
        ValueError: the manifest is of another configuration (the sentence names what differs), or cannot be read.
    """
    path = folder / NAME
    try:
        held = json.loads(path.read_text("utf-8"))["configuration"]
        missing = wanted.keys() - held.keys()
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the manifest {path} cannot be read: {type(error).__name__}: {error}") from None
    asked = json.loads(json.dumps(wanted))
    differing = [f"{k} {held.get(k)!r} there, {asked[k]!r} here" for k in asked if k in missing or held[k] != asked[k]]
    if differing:
        raise ValueError(f"{folder} holds results of another configuration: {'; '.join(differing)}; take another --out")


def ensure_manifest(folder: Path, complete: dict[str, Any], model: str) -> None:
    """Write the manifest, unless there is one, which must be of the same configuration."""
    canonical = json.dumps(complete, sort_keys=True).encode()
    value = {
        "configuration": complete,
        "fingerprint": hashlib.sha256(canonical).hexdigest(),
        "made with": {
            "pez_fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "model": model,
        },
    }
    text = json.dumps(value, indent=1) + "\n"
    if not write_atomically(folder / NAME, lambda file: file.write(text.encode()), replace=False):
        check_manifest(folder, complete)
    for lost in folder.glob(f".{NAME}.*.tmp"):  # of a run that was killed, or that comes too late to write it
        lost.unlink(missing_ok=True)
