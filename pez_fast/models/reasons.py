"""Why a model could not be loaded, in words that say what to do."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from urllib.error import HTTPError, URLError

import torch

from pez_fast._shared.catalog import names_here

_OFFLINE = frozenset(
    "LocalEntryNotFoundError OfflineModeIsEnabled ConnectionError ConnectTimeout ConnectError ProxyError".split()
)
_ABSENT = ("RepositoryNotFoundError", "EntryNotFoundError", "RevisionNotFoundError", "GatedRepoError")
DRIVER = Path("/proc/driver/nvidia/version")
_MOST = 300  # characters of a sentence that is quoted


def load_failure(error: BaseException) -> str:
    """Returns one sentence, without its full stop, on what an error of open_clip, a hub or torch means for the user."""
    for cause in _causes(error):
        kind, text = type(cause).__name__, str(cause)
        if kind in _ABSENT or (isinstance(cause, HTTPError) and cause.code in (401, 403, 404)):
            return "the hub has no such model, or does not show it without an account"
        if kind in _OFFLINE or "check your connection" in text or type(cause) is URLError:
            return not_here()
        if "pretrained weights" in text and "could not be loaded" in text:
            return "there is no checkpoint beside its configuration"
        if "state_dict" in text and any(word in text for word in ("size mismatch", "Missing key", "Unexpected key")):
            return "the checkpoint is one of another model"
        if isinstance(cause, pickle.UnpicklingError) or "Weights only load failed" in text:
            return "the file is no checkpoint of weights alone; one that holds other objects is not opened"
        if kind == "SafetensorError":
            return "the file is damaged, or no safetensors file"
        if isinstance(cause, FileNotFoundError) and cause.filename:
            return f"there is no file {cause.filename}"
    return quoted(error)


def no_network(error: BaseException) -> bool:
    """Whether an error of the hub's client says that the hub cannot be reached."""
    return any(type(cause).__name__ in _OFFLINE for cause in _causes(error))


def not_here() -> str:
    """Says that a model is not in the cache and cannot be downloaded, and which models can be had."""
    names = [f"{name!r}" for name in names_here() if name != "emoji"]
    instead = f"the cache holds {', '.join(names)}, and " if names else ""
    return f"it is not in the cache and there is no network; {instead}the bundled model 'emoji' needs neither"


def why_no_cuda() -> str:
    """Why torch finds no CUDA device, in words that say what to do."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch was built without CUDA; install one that was built with it"
    if hidden is not None and hidden.split(",")[0].strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides all devices"
    if not DRIVER.exists() and sys.platform == "linux" and torch.version.cuda:
        return "this torch was built with CUDA, but no NVIDIA driver is loaded"
    return "a driver is there, but torch cannot use it; nvidia-smi says whether it works and which CUDA it knows"


def quoted(error: BaseException) -> str:
    """Returns the first line of an error's text, cut between words where it is long."""
    lines = str(error).strip().splitlines()
    return shorten(re.sub(r"\s+", " ", lines[0]), _MOST, placeholder=" …") if lines else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
