"""The manifest: what a folder of results was made with, so that no other results are mixed in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pez_fast._shared.files import write_atomically
from pez_fast.config import SearchConfig
from pez_fast.dataset.sources import Source
from pez_fast.models.fingerprint import text_digest
from pez_fast.models.precision import search_dtype
from pez_fast.version import __version__

NAME = "_manifest.json"  # readers of Parquet folders skip names that begin with _ or .
_PLACE, _DATA_SET = "source's place", "data set"
# Options that change no result (every implementation finds the same tokens), and those that stand as digests.
_LEFT_OUT = {"batch_size", "callback", "every", "impl", "top_k", "stages", "terms"}


def configuration(source: Source, options: SearchConfig) -> dict[str, Any]:
    """Returns as plain values all that decides the results except the model: options and the data set's identity.

    "data set" is a digest of the identity. It stays when the data set moves, and "source's place" follows.
    """
    return {
        **search_part(options),
        **{f"source's {k}": v for k, v in source.identity.items()},
        _DATA_SET: text_digest(repr(sorted(source.identity.items()))),
    }


def search_part(options: SearchConfig) -> dict[str, Any]:
    """Returns the options that decide on results, as plain values; plugs stand as digests."""
    chosen = {
        k: v for k, v in dataclasses.asdict(replace(options, stages=None, terms=())).items() if k not in _LEFT_OUT
    }
    plugs = {name: text_digest(repr(v)) if (v := getattr(options, name)) else None for name in ("stages", "terms")}
    chosen.pop("dtype")  # it stands in the model's part
    words = options.vocabulary
    vocabulary = words if isinstance(words, str) else f"{len(words)} words with the digest {text_digest(repr(words))}"  # type: ignore[arg-type]
    return {**chosen, **plugs, "banned": list(options.banned), "vocabulary": vocabulary}


def model_part(model: Any, options: SearchConfig, device: str) -> dict[str, Any]:
    """Returns the model's part of the configuration, as plain values.

    It holds the model's fingerprint, a digest of the allowed tokens, the dtype of the search, and the type of the
    device, since devices round differently.
    """
    table = model.table(options.vocabulary, options.banned)
    dtype = search_dtype(options.dtype, model.dtype, table.dim, torch.device(device))
    return {
        **model.fingerprint(),
        "allowed tokens": hashlib.sha256(table.allowed.cpu().numpy().tobytes()).hexdigest()[:16],
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
    }


def stored_configuration(folder: Path) -> dict[str, Any] | None:
    """Returns the configuration of a folder's manifest; None if there is no manifest.

    Raises:
        ValueError: the manifest cannot be read.
    """
    path = folder / NAME
    try:
        stored = json.loads(path.read_text("utf-8"))["configuration"]
        return dict(stored.items())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the manifest {path} cannot be read: {type(error).__name__}: {error}") from None


def of_one_data_set(folder: Path, here: dict[str, Any], moved: bool) -> dict[str, Any]:
    """Returns a configuration whose "data set" is the folder's, if its source is the folder's.

    Args:
        moved: whether a source at another place is the folder's too.

    Raises:
        ValueError: the source is at another place and not `moved`, or the manifest cannot be read.
    """
    stored = stored_configuration(folder)
    if stored is None or _PLACE not in stored or _DATA_SET not in stored:
        return here
    if all(stored.get(k) == v for k, v in here.items() if k not in (_PLACE, _DATA_SET)) and not moved:
        if not _is_same_place(stored[_PLACE], here[_PLACE]):
            raise ValueError(
                f"{folder} holds results of the source {stored[_PLACE]}, and not of {here[_PLACE]}; "
                "take another --out, or add --moved if it is the same data set at another place"
            )
    if moved:
        return {**here, _DATA_SET: stored[_DATA_SET]}
    same = _is_same_place(stored[_PLACE], here[_PLACE])
    return {**here, _PLACE: stored[_PLACE], _DATA_SET: stored[_DATA_SET]} if same else here


def _is_same_place(one: str, other: str) -> bool:
    """Returns whether two paths are the same, or lead to the same place by links."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def check_manifest(folder: Path, expected: dict[str, Any], moved: bool = False) -> None:
    """Checks that the folder was made with this configuration; a folder without a manifest passes.

    Args:
        expected: a configuration, or a part of one.
        moved: whether the source may be at another place.

    Raises:
        ValueError: the manifest differs (the message names the differences) or cannot be read.
    """
    stored = stored_configuration(folder)
    if stored is None:
        return
    plain = json.loads(json.dumps(expected))
    compared = [k for k in plain if k != _DATA_SET and not (moved and k == _PLACE)]
    differing = [
        f"{k} {stored.get(k)!r} there, {plain[k]!r} here" for k in compared if k not in stored or stored[k] != plain[k]
    ]
    if differing:
        raise ValueError(f"{folder} holds results of another configuration: {'; '.join(differing)}; take another --out")


def fingerprint_of(complete: dict[str, Any]) -> str:
    """Returns a SHA-256 over a whole configuration, without the source's place; each shard carries its maker's."""
    lasting = {k: v for k, v in complete.items() if k != _PLACE}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def ensure_manifest(folder: Path, complete: dict[str, Any], model: str, moved: bool = False) -> None:
    """Writes the manifest if the folder has none, or if the source has moved.

    Raises:
        ValueError: the folder has a manifest of another configuration, or one that cannot be read.
    """
    value = {
        "configuration": complete,
        "fingerprint": fingerprint_of(complete),
        "made with": {
            "pez_fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "model": model,
        },
    }
    text = json.dumps(value, indent=1) + "\n"
    if not write_atomically(folder / NAME, lambda file: file.write(text.encode()), replace=moved):
        check_manifest(folder, complete)
    for leftover in folder.glob(f".{NAME}.*.tmp"):  # left by a run that was killed or that was not the first
        leftover.unlink(missing_ok=True)
