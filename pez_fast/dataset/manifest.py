"""What a folder of results was made with, so that nothing else is mixed into it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pez_fast.config import SearchConfig
from pez_fast.dataset.shards import write_atomically
from pez_fast.dataset.sources import Source
from pez_fast.models.fingerprint import text_digest
from pez_fast.models.precision import search_dtype
from pez_fast.version import __version__

NAME = "_manifest.json"  # readers of Parquet folders pass over names that begin with _ or .
_NO_EFFECT = {
    "batch_size",
    "callback",
    "every",
    "impl",
    "top_k",
    "stages",
    "terms",
}  # every implementation finds the same tokens


def configuration(source: Source, options: SearchConfig) -> dict[str, Any]:
    """All that decides on the results but the model: options and the data set, as plain values."""
    chosen = {
        k: v for k, v in dataclasses.asdict(replace(options, stages=None, terms=())).items() if k not in _NO_EFFECT
    }
    plugs = {name: text_digest(repr(v)) if (v := getattr(options, name)) else None for name in ("stages", "terms")}
    chosen.pop("dtype")  # the model's part
    return {
        **chosen,
        **plugs,
        "banned": list(options.banned),
        **{f"source's {k}": v for k, v in source.identity.items()},
    }


def model_part(model: Any, options: SearchConfig, device: str) -> dict[str, Any]:
    """The model's part: its fingerprint, a digest of the allowed tokens, and the type of device, which rounds its own way."""
    table = model.table(options.vocabulary, options.banned)
    dtype = search_dtype(options.dtype, model.dtype, table.dim, torch.device(device))
    return {
        **model.fingerprint(),
        "allowed tokens": hashlib.sha256(table.allowed.cpu().numpy().tobytes()).hexdigest()[:16],
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
    }


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
