"""The original's utilities: configuration, seeds, images, features, prompts and projection."""

from __future__ import annotations

import json
import os
import random
import weakref
from collections.abc import Callable, Mapping
from importlib import import_module
from io import BytesIO
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pez_fast.functional import nearest_token
from pez_fast.table import TokenTable

_CONTEXT, _SOT, _EOT = 77, 49406, 49407
_tables: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, TokenTable]] = weakref.WeakKeyDictionary()


def semantic_search(*args: Any, **kwargs: Any) -> Any:
    """`sentence_transformers.util.semantic_search`, imported when it is called."""
    return import_module("sentence_transformers.util").semantic_search(*args, **kwargs)


def dot_score(a: Any, b: Any) -> Tensor:
    """Returns the products (N, M) of all pairs of the rows of a (N, d) and b (M, d), or of single vectors."""
    return torch.atleast_2d(torch.as_tensor(a)) @ torch.atleast_2d(torch.as_tensor(b)).T


def normalize_embeddings(embeddings: Tensor) -> Tensor:
    """Returns the rows (N, d) divided by their norms."""
    return F.normalize(embeddings, p=2, dim=1)


def read_json(filename: str) -> Mapping[str, Any]:
    """Returns the contents of a JSON file, such as `sample_config.json`."""
    with open(filename, encoding="utf-8") as file:
        return json.load(file)


def set_random_seed(seed: int = 0) -> None:
    """Seeds torch by seed, numpy by seed + 3, all CUDA devices by seed + 4 and random by seed + 5, as the original."""
    torch.manual_seed(seed)
    np.random.seed(seed + 3)
    torch.cuda.manual_seed_all(seed + 4)
    random.seed(seed + 5)


def nn_project(curr_embeds: Tensor, embedding_layer: nn.Embedding, print_hits: bool = False) -> tuple[Tensor, Tensor]:
    """Projects embeddings (B, L, d) onto the nearest tokens.

    The function prepares a layer's table once, and again if torch sees that the weight was replaced or changed.

    Returns:
        The tokens' embeddings (B, L, d), without gradient, and their ids (B, L) int64.
    """
    ids, similarity = nearest_token(curr_embeds.detach(), table_of(embedding_layer))
    if print_hits:
        print(f"mean hits:{float(similarity.mean())}")
    with torch.no_grad():
        return embedding_layer(ids), ids


def table_of(layer: nn.Embedding) -> TokenTable:
    """Returns the prepared table of a layer, made anew if its weight has changed."""
    weight = layer.weight
    state = (weight.data_ptr(), weight._version, weight.shape, weight.dtype, weight.device)
    if layer not in _tables or _tables[layer][0] != state:
        _tables[layer] = (state, TokenTable(weight))
    return _tables[layer][1]


def stock_tokenizer() -> tuple[Any, Callable[[Any], Tensor]]:
    """Returns open_clip's tokenizer, and what turns texts into ids (N, 77).

    A folder `open_clip` beside the script, as in the original's repository, hides the installed open_clip. An old copy
    does as well: its tokenizer cannot be called, and its function `tokenize` takes that place.

    Raises:
        ImportError: what is imported as open_clip has no such tokenizer; the sentence names its folder.
    """
    open_clip = import_module("open_clip")
    tokenizer = getattr(getattr(open_clip, "tokenizer", None), "_tokenizer", None)
    tokenize = tokenizer if callable(tokenizer) else getattr(open_clip, "tokenize", None)
    if tokenizer is None or tokenize is None:
        file = getattr(open_clip, "__file__", None)
        folder = os.path.dirname(file) if file else ", ".join(getattr(open_clip, "__path__", ["?"]))
        raise ImportError(
            f"open_clip was imported from {folder}, which has no tokenizer and hides the installed open_clip; "
            "rename or remove that folder, or run the script from another one"
        )
    return tokenizer, tokenize


def decode_ids(input_ids: Tensor, tokenizer: Any, by_token: bool = False) -> list[str]:
    """Returns a text for each row of ids (B, L); with `by_token`, a row's tokens are joined by "|"."""
    rows = input_ids.tolist()
    if by_token:
        return ["|".join(tokenizer.decode([i]) for i in row) for row in rows]
    return [tokenizer.decode(row) for row in rows]


def download_image(url: str) -> Image.Image | None:
    """Returns the image at an http(s) address as RGB, or None if it cannot be downloaded or read."""
    if not url.lower().startswith(("http://", "https://")):
        return None
    try:
        with urlopen(url, timeout=30) as response:
            return Image.open(BytesIO(response.read())).convert("RGB")
    except (URLError, OSError, ValueError):
        return None


@torch.no_grad()
def get_target_feature(
    model: Any,
    preprocess: Any,
    tokenizer_funct: Any,
    device: Any,
    target_images: Any = None,
    target_prompts: Any = None,
) -> Tensor:
    """Returns the features (T, D) of the images, or of the texts if there are no images; without gradient.

    Raises:
        ValueError: there is neither an image nor a text.
    """
    if target_images is not None:
        if not len(target_images):
            raise ValueError("target_images must hold at least one image; got none")
        pixels = torch.stack([preprocess(image) for image in target_images])
        return model.encode_image(pixels.to(device, model.token_embedding.weight.dtype))
    if not target_prompts:
        raise ValueError(f"target_images or target_prompts must be given; got None and {target_prompts!r}")
    return model.encode_text(tokenizer_funct(target_prompts).to(device))


def initialize_prompt(
    tokenizer: Any, token_embedding: nn.Embedding, args: Any, device: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws the prompts that the search begins at.

    Returns:
        prompt_embeds (prompt_bs, prompt_len, d), a leaf that requires a gradient; dummy_embeds (prompt_bs, 77, d);
        dummy_ids (prompt_bs, 77), -1 where the prompt goes.

    Raises:
        ValueError: prompt_len does not fit into the context of 77 tokens.
    """
    length, rows = args.prompt_len, args.prompt_bs
    if not 1 <= length <= _CONTEXT - 2:
        raise ValueError(f"prompt_len must be from 1 to {_CONTEXT - 2}; got {length}")
    vocabulary = getattr(tokenizer, "encoder", None) or tokenizer.get_vocab()
    ids = torch.randint(len(vocabulary), (rows, length)).to(device)
    prompt_embeds = token_embedding(ids).detach().requires_grad_()
    template = [_SOT] + [-1] * length + [_EOT]  # numbers of the original, whatever the tokenizer is
    dummy_ids = torch.tensor([template + [0] * (_CONTEXT - len(template))] * rows, device=device)
    with torch.no_grad():
        dummy_embeds = token_embedding(dummy_ids.clamp_min(0))
    return prompt_embeds, dummy_embeds, dummy_ids


@torch.no_grad()
def measure_similarity(orig_images: Any, images: Any, ref_model: Any, ref_clip_preprocess: Any, device: Any) -> float:
    """Returns a reference CLIP's mean cosine over all pairs of an original and a generated image."""
    features = [
        F.normalize(ref_model.encode_image(torch.stack([ref_clip_preprocess(i) for i in group]).to(device)), dim=1)
        for group in (orig_images, images)
    ]
    return float((features[0] @ features[1].T).mean())
