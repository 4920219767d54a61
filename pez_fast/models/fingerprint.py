"""Short digests of what decides a model's results."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import torch


def weights_digest(model: torch.nn.Module) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and bytes of all parameters and buffers, cut to 16 digits."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


def text_digest(text: str) -> str:
    """Returns the SHA-256 of a text without the addresses of objects in it, cut to 16 digits."""
    plain = re.sub(r" at 0x[0-9a-f]+", "", text)
    return hashlib.sha256(f"{plain!r}\n".encode()).hexdigest()[:16]


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """Returns what a tokenizer of transformers does, without the padding and truncation of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    return {name: value for name, value in state.items() if name not in ("truncation", "padding")}
