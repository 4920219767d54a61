"""Features of phrases, kept on the disk by model and by the phrases themselves."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pez_fast._shared.files import write_atomically

VARIABLE = "PEZ_FAST_CACHE"
_FORMAT = 1
_SUFFIX = ".phrases"  # a SHA-256 and the safetensors file that it is of
_DIGEST = hashlib.sha256().digest_size


class PhraseCache:
    """A folder of features.

    A file is whole or absent, so processes may share the folder. A file that is damaged is computed and written anew,
    and a warning says so; where nothing can be written, nothing is kept, and a warning says that once.

    Args:
        model: from `load_clip`. The features of one without `fingerprint` are not kept.
        folder: default: PEZ_FAST_CACHE, or the folder `pez_fast` in the user's folder of caches. False for none.
    """

    def __init__(self, model: Any, folder: str | os.PathLike | bool | None = None) -> None:
        if folder is not None and folder is not False and not isinstance(folder, (str, os.PathLike)):
            raise ValueError(f"cache must be a folder, or False for none; got {folder!r}")
        self._device = model.device
        keeps = folder is not False and hasattr(model, "fingerprint")
        place = Path(folder) if isinstance(folder, (str, os.PathLike)) else cache_folder()
        self.folder = place / "phrases" if keeps else None
        self._model = _identity(model) if keeps else ""
        self._writable = True

    def get(self, phrases: Sequence[str], encode: Callable[[], Tensor]) -> Tensor:
        """Returns the features (N, D) of phrases: those that are kept, or else what `encode` returns, which is kept."""
        if self.folder is None:
            return encode()
        key = hashlib.sha256(json.dumps([self._model, list(phrases)]).encode()).hexdigest()[:40]
        path = self.folder / f"{key}{_SUFFIX}"
        features = _read(path, len(phrases))
        if features is None:
            features = encode()
            self._write(path, features)
        return features.to(self._device)

    def _write(self, path: Path, features: Tensor) -> None:
        """Keeps features, if that can be done."""
        if not self._writable:
            return
        data = save({"features": features.cpu().contiguous()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: file.write(hashlib.sha256(data).digest() + data))
        except OSError as error:
            self._writable = False
            reason = error.strerror or error
            warnings.warn(f"phrases are not kept for the next time: {path.parent}: {reason}", stacklevel=2)


def cache_folder() -> Path:
    """Returns the folder that PEZ_FAST_CACHE names, or `pez_fast` in the user's folder of caches."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "pez_fast" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "pez_fast"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "pez_fast"


def _read(path: Path, count: int) -> Tensor | None:
    """Returns the features that a file holds, or None if there is no such file or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:_DIGEST], content[_DIGEST:]
    try:
        if hashlib.sha256(data).digest() == digest and len(features := load(data)["features"]) == count:
            return features
    except (SafetensorError, KeyError):
        pass
    warnings.warn(f"{path} is damaged, so its phrases are encoded again", stacklevel=2)
    return None


def _identity(model: Any) -> str:
    """Returns what decides the features of a text: weights, dtype, tokenizer, and the kind of device, which rounds."""
    vocabulary = model.vocabulary
    reader = [type(vocabulary.tokenizer).__name__, vocabulary.size, model.context_length]
    return json.dumps([_FORMAT, sorted(model.fingerprint().items()), reader, model.device.type])
