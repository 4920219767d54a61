"""The original's search: `optimize_prompt` and its loop."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pez_fast.compat.utilities import (
    decode_ids,
    get_target_feature,
    initialize_prompt,
    read_json,
    stock_tokenizer,
    table_of,
)
from pez_fast.engine import BatchLimit, Evaluator, Outputs
from pez_fast.methods.pez import PEZMethod, PEZState
from pez_fast.models.text_tower import Template, TextEncoder
from pez_fast.optimizer import PEZ

_KEYS = ("prompt_len", "iter", "lr", "weight_decay", "prompt_bs", "loss_weight", "print_step", "batch_size")
_OPTIONAL = ("clip_model", "clip_pretrain", "print_new_best")


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


class _AllAtOnce(BatchLimit):
    """All prompts are evaluated together, since a step's targets are drawn once; memory that runs out is an error."""

    def halve(self, rows: int, gradient: bool) -> bool:
        return False


def optimize_prompt_loop(
    model: Any, tokenizer: Any, token_embedding: nn.Embedding, all_target_features: Tensor, args: Any, device: Any
) -> str:
    """Returns the text of the best prompt after args.iter steps."""
    args = _config(args)
    prompt_embeds, _, dummy_ids = initialize_prompt(tokenizer, token_embedding, args, device)
    dtype = torch.promote_types(prompt_embeds.dtype, torch.float32)
    opt = PEZ(prompt_embeds.detach().to(dtype), table_of(token_embedding), lr=args.lr, weight_decay=args.weight_decay)
    slots = (dummy_ids[0] == -1).nonzero()[:, 0]
    template = Template(dummy_ids[0].masked_fill(dummy_ids[0] == -1, 0), slots, int(slots[-1]) + 2)
    targets = F.normalize(all_target_features.detach().to(dtype), dim=-1)
    objective = _DrawnTargets(targets, args.batch_size, args.loss_weight)
    best_sim, best_text = -1000 * args.loss_weight, ""
    encoder = TextEncoder(model, template)
    evaluate = Evaluator(
        opt.table,
        lambda embeds, ids: {"features": encoder(embeds)},
        objective,  # type: ignore[arg-type]  # its rows cannot be selected
        _AllAtOnce(len(prompt_embeds), len(prompt_embeds)),
    )
    method, state = PEZMethod(args.lr, args.weight_decay), PEZState([opt])
    with _frozen(model):
        for step in range(args.iter):  # the projection after the last update is never scored
            evaluation = method.step(state, evaluate, update=True)
            ids, scores = evaluation.ids, evaluation.score
            best = int(scores.argmax())
            score = float(scores[best])
            better = best_sim * args.loss_weight < score * args.loss_weight
            printing = args.print_step is not None and (step % args.print_step == 0 or step == args.iter - 1)
            text = decode_ids(ids[best : best + 1], tokenizer)[0] if better or printing else ""
            if printing:
                line = f"step: {step}, lr: {opt.param_groups[0]['lr']}"
                print(line if args.print_new_best else f"\n{line}, cosim: {score:.3f}, text: {text}")
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
        ImportError: a folder `open_clip` that is none hides the installed open_clip; the sentence names it.
    """
    args = _config(args)
    tokenizer, tokenize = stock_tokenizer()
    targets = get_target_feature(model, preprocess, tokenize, device, target_images, target_prompts)
    return optimize_prompt_loop(model, tokenizer, model.token_embedding, targets, args, device)


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
    for key, least in (("prompt_len", 1), ("iter", 0), ("prompt_bs", 1)):
        if not isinstance(values[key], int) or values[key] < least:
            kind = "a positive integer" if least else "an integer, not negative"
            raise ValueError(f"args.{key} must be {kind}; got {values[key]!r}")
    for key in ("batch_size", "print_step"):
        if values[key] is not None and (not isinstance(values[key], int) or values[key] < 1):
            raise ValueError(f"args.{key} must be a positive integer or None; got {values[key]!r}")
    return Namespace(**{"print_new_best": False, **values})
