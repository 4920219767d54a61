"""The functions of the original code's `optim_utils.py`, with its arguments and results (Wen et al. 2023).

    from pez_fast.compat import *   # in place of: from optim_utils import *

They work on stock open_clip models; no modified copy is needed. They draw random numbers in the original's order from
torch's global generator, so a seed gives the prompt that it gave there, up to rounding: one pass of the tower over the
prompt's own tokens replaces two passes over the whole context.

They keep four properties of the original on purpose, because results depend on them: they draw and learn tokens from
the whole vocabulary, start and end token included; typing the returned text in again may give other tokens; they never
score the projection after the last update; with a negative loss_weight and prompt_bs > 1 they still rank the prompts of
one step by the largest cosine. `pez_fast.invert` has none of these properties.
"""

from __future__ import annotations

import json
import os
import random
import weakref
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pez_fast.engine import BatchLimit, Evaluator, Outputs
from pez_fast.functional import nearest_token
from pez_fast.methods.pez import PEZMethod, PEZState
from pez_fast.models.text_tower import Template, TextEncoder
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable

__all__ = [
    "decode_ids",
    "download_image",
    "get_target_feature",
    "initialize_prompt",
    "measure_similarity",
    "nn_project",
    "optimize_prompt",
    "optimize_prompt_loop",
    "read_json",
    "set_random_seed",
]

_CONTEXT = 77
_KEYS = ("prompt_len", "iter", "lr", "weight_decay", "prompt_bs", "loss_weight", "print_step", "batch_size")
_OPTIONAL = ("clip_model", "clip_pretrain", "print_new_best")
_tables: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, TokenTable]] = weakref.WeakKeyDictionary()


def read_json(filename: str) -> Mapping[str, Any]:
    """Returns the contents of a JSON file, such as `sample_config.json`."""
    with open(filename, encoding="utf-8") as file:
        return json.load(file)


def set_random_seed(seed: int = 0) -> None:
    """Seeds torch on all devices, numpy and random."""
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)
    random.seed(seed)


def nn_project(curr_embeds: Tensor, embedding_layer: nn.Embedding, print_hits: bool = False) -> tuple[Tensor, Tensor]:
    """Projects embeddings (B, L, d) onto the nearest tokens.

    The function prepares a layer's table once, and again if torch sees that the weight was replaced or changed.

    Returns:
        The tokens' embeddings (B, L, d), without gradient, and their ids (B, L) int64.
    """
    ids, similarity = nearest_token(curr_embeds.detach(), _table(embedding_layer))
    if print_hits:
        print(f"mean hits:{float(similarity.mean())}")
    with torch.no_grad():
        return embedding_layer(ids), ids


def _table(layer: nn.Embedding) -> TokenTable:
    """Returns the prepared table of a layer, made anew if its weight has changed."""
    weight = layer.weight
    state = (weight.data_ptr(), weight._version, weight.shape, weight.dtype, weight.device)
    if layer not in _tables or _tables[layer][0] != state:
        _tables[layer] = (state, TokenTable(weight))
    return _tables[layer][1]


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
    ids = torch.randint(len(tokenizer.encoder), (rows, length)).to(device)
    prompt_embeds = token_embedding(ids).detach().requires_grad_()
    template = [tokenizer.sot_token_id] + [-1] * length + [tokenizer.eot_token_id]
    dummy_ids = torch.tensor([template + [0] * (_CONTEXT - len(template))] * rows, device=device)
    with torch.no_grad():
        dummy_embeds = token_embedding(dummy_ids.clamp_min(0))
    return prompt_embeds, dummy_embeds, dummy_ids


class _DrawnTargets:
    """The original's objective: a loss on targets drawn anew at every step, and a score against all targets."""

    def __init__(self, targets: Tensor, batch_size: int | None, loss_weight: float) -> None:
        self.targets, self.batch_size, self.loss_weight = targets, batch_size, loss_weight

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        features, targets = outputs["features"], self.targets
        drawn = (
            targets
            if self.batch_size is None
            else targets[torch.randperm(len(targets))[: self.batch_size].to(targets.device)]
        )
        loss = self.loss_weight * (1 - (drawn @ features.T).mean())
        return loss, (targets @ features.detach().T).mean(0)


def optimize_prompt_loop(
    model: Any, tokenizer: Any, token_embedding: nn.Embedding, all_target_features: Tensor, args: Any, device: Any
) -> str:
    """Returns the text of the best prompt after args.iter steps."""
    args = _config(args)
    prompt_embeds, _, dummy_ids = initialize_prompt(tokenizer, token_embedding, args, device)
    dtype = torch.promote_types(prompt_embeds.dtype, torch.float32)
    opt = PEZ(prompt_embeds.detach().to(dtype), _table(token_embedding), lr=args.lr, weight_decay=args.weight_decay)
    slots = (dummy_ids[0] == -1).nonzero()[:, 0]
    template = Template(dummy_ids[0].masked_fill(dummy_ids[0] == -1, 0), slots, int(slots[-1]) + 2)
    targets = F.normalize(all_target_features.detach().to(dtype), dim=-1)
    objective = _DrawnTargets(targets, args.batch_size, args.loss_weight)
    best_sim, best_text = -1000 * args.loss_weight, ""
    encoder = TextEncoder(model, template)
    evaluate = Evaluator(
        opt.table,
        lambda embeds, ids: {"features": encoder(embeds)},
        objective,  # type: ignore[arg-type]  # its rows cannot be selected: all prompts are evaluated at once
        BatchLimit(len(prompt_embeds), len(prompt_embeds)),
    )
    method, state = PEZMethod(args.lr, args.weight_decay), PEZState([opt])
    for step in range(args.iter):  # the projection after the last update is never scored
        with _frozen(model):
            evaluation = method.step(state, evaluate, update=True)
        ids, scores = evaluation.ids, evaluation.score
        best = int(scores.argmax())
        score = float(scores[best])
        better = best_sim * args.loss_weight < score * args.loss_weight
        printing = args.print_step is not None and (step % args.print_step == 0 or step == args.iter - 1)
        text = decode_ids(ids[best : best + 1], tokenizer)[0] if better or printing else ""
        if printing:
            line = f"step: {step}, lr: {opt.param_groups[0]['lr']}"
            print(line if args.print_new_best else f"{line}, cosim: {score:.3f}, text: {text}")
        if better:
            best_sim, best_text = score, text
            if args.print_new_best:
                print(f"new best cosine sim: {best_sim}\nnew best prompt: {best_text}")
    if args.print_step is not None:
        print(f"\nbest cosine sim: {best_sim}\nbest prompt: {best_text}")
    return best_text


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Switches off the gradients of the model's parameters inside the context."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_()


def optimize_prompt(
    model: Any, preprocess: Any, args: Any, device: Any, target_images: Any = None, target_prompts: Any = None
) -> str:
    """Learns a prompt for images (several are one shared target) or, if there are none, for texts.

    Args:
        model, preprocess: from `open_clip.create_model_and_transforms`.
        args: a Namespace, a dict, or the path of a JSON file, with the keys of `sample_config.json`.
        device: the model's device.
        target_images: PIL images.
        target_prompts: texts.

    Returns:
        The text of the prompt whose ids had the largest mean cosine with all targets.

    Raises:
        ValueError: a key is missing or (in a dict or file) unknown, a value is out of range, or there is no target.
    """
    import open_clip

    args = _config(args)
    tokenizer = open_clip.tokenizer._tokenizer
    targets = get_target_feature(model, preprocess, tokenizer, device, target_images, target_prompts)
    return optimize_prompt_loop(model, tokenizer, model.token_embedding, targets, args, device)


@torch.no_grad()
def measure_similarity(orig_images: Any, images: Any, ref_model: Any, ref_clip_preprocess: Any, device: Any) -> float:
    """Returns a reference CLIP's mean cosine over all pairs of an original and a generated image."""
    features = [
        F.normalize(ref_model.encode_image(torch.stack([ref_clip_preprocess(i) for i in group]).to(device)), dim=1)
        for group in (orig_images, images)
    ]
    return float((features[0] @ features[1].T).mean())


def _config(args: Any) -> Namespace:
    """Returns the checked configuration; a Namespace may hold unknown keys, a dict or file may not."""
    if isinstance(args, (str, os.PathLike)):
        args = read_json(os.fspath(args))
    values = dict(args) if isinstance(args, Mapping) else dict(vars(args))
    if isinstance(args, Mapping):
        for key in values:
            if key not in _KEYS + _OPTIONAL:
                raise ValueError(f"args holds the unknown key {key!r}; known are {', '.join(_KEYS + _OPTIONAL)}")
    for key in _KEYS:
        if key not in values:
            raise ValueError(f"args lacks the key {key!r}")
    for key in ("prompt_len", "iter", "prompt_bs"):
        if not isinstance(values[key], int) or values[key] < 1:
            raise ValueError(f"args.{key} must be a positive integer; got {values[key]!r}")
    for key in ("batch_size", "print_step"):
        if values[key] is not None and (not isinstance(values[key], int) or values[key] < 1):
            raise ValueError(f"args.{key} must be a positive integer or None; got {values[key]!r}")
    return Namespace(**{"print_new_best": False, **values})
