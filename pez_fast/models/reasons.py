"""Why a model could not be loaded, in words that say what to do."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from textwrap import shorten
from urllib.error import HTTPError, URLError

_OFFLINE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectTimeout", "ConnectError")
_ABSENT = ("RepositoryNotFoundError", "EntryNotFoundError", "RevisionNotFoundError", "GatedRepoError")
_MOST = 300  # characters of a sentence that is quoted


def load_failure(error: BaseException) -> str:
    """Returns one sentence, without its full stop, on what an error of open_clip, a hub or torch means for the user."""
    for cause in _causes(error):
        kind, text = type(cause).__name__, str(cause)
        if kind in _ABSENT or (isinstance(cause, HTTPError) and cause.code in (401, 403, 404)):
            return "the hub has no such model, or does not show it without an account"
        if kind in _OFFLINE or "check your connection" in text or type(cause) is URLError:
            return "it is not in the cache and there is no network; the bundled model 'emoji' needs neither"
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
