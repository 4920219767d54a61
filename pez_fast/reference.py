"""The oracle: every operation in plain torch, slow and obviously right. No fast implementation imports this module.

The loop is that of Wen et al. 2023 (arXiv 2302.03668) with the choices of its published CLIP code: see
`optimize_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_token(x: Tensor, weight: Tensor, banned: Iterable[int] = ()) -> tuple[Tensor, Tensor]:
    """Returns the nearest token of each row of x (N, d) among the rows of weight (V, d).

    The function computes cosines in float64; if float64 cannot tell the largest ones apart, exact fractions decide.

    Returns:
        ids (N,) of the largest cosine, the lowest id on ties, and that cosine (N,) float64.
    """
    banned = set(banned)
    allowed = [v for v in range(len(weight)) if v not in banned]
    e = _unit(weight[allowed])
    ids, cosines = [], []
    for row in x:
        cosine = e @ _unit(row)
        near = (cosine >= cosine.max() - 1e-12).nonzero()[:, 0].tolist()
        best = near[0]
        if len(near) > 1:
            keys = {v: _exact_key(row, weight[allowed[v]]) for v in near}
            top = max(keys.values())
            best = next(v for v in near if keys[v] == top)
        ids.append(allowed[best])
        cosines.append(cosine[best])
    return torch.tensor(ids, dtype=torch.int64), torch.stack(cosines) if cosines else torch.empty(
        0, dtype=torch.float64
    )


def _unit(x: Tensor) -> Tensor:
    """Returns the rows of x in float64, divided by their norm; a zero row stays zero."""
    x = x.double()
    largest = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    return x / x.norm(dim=-1, keepdim=True).clamp_min(0.5)


def _exact_key(q: Tensor, e: Tensor) -> Fraction:
    """Returns sign(<q, e>) <q, e>^2 / <e, e>, a rational number in the order of the cosines."""
    qs, es = ([Fraction(v) for v in t.tolist()] for t in (q, e))
    dot = sum((a * b for a, b in zip(qs, es, strict=True)), Fraction())
    square = sum((b * b for b in es), Fraction())
    return dot * abs(dot) / square if square else Fraction()


def project(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Projects x (…, d) straight through: forward the nearest rows, backward the identity (Bengio et al. 2013)."""
    ids, _ = nearest_token(x.detach().reshape(-1, x.shape[-1]), weight)
    hard = weight.detach()[ids].view(x.shape)
    return _Identity.apply(x, hard), ids.view(x.shape[:-1])


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, hard):
        return hard.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    """Returns template (B, S, d) with row owner[b] of hard (R, L, d) at the positions slots (L,) of template b."""
    out = template.clone()
    for b in range(len(template)):
        for k, s in enumerate(slots.tolist()):
            out[b, s] = hard[owner[b], k].to(template.dtype)
    return out


def splice_backward(grad: Tensor, slots: Tensor, owner: Tensor, prompts: int) -> Tensor:
    """Returns the gradient (prompts, L, d) float64 of `splice` by `hard`, from grad (B, S, d)."""
    total = torch.zeros(prompts, len(slots), grad.shape[2], dtype=torch.float64)
    for b in range(len(grad)):
        for k, s in enumerate(slots.tolist()):
            total[owner[b], k] += grad[b, s].double()
    return total


def adamw_step(
    p: Tensor,
    g: Tensor,
    state: dict,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Returns p after one step of AdamW (Loshchilov and Hutter 2019, algorithm 2); `state` is {} at first."""
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = betas[0] * state.get("m", torch.zeros_like(g)) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", torch.zeros_like(g)) + (1 - betas[1]) * g * g
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps)


def nn_project(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Projects as published: it normalises the table at every call and writes out all scores."""
    flat = x.reshape(-1, x.shape[-1])
    ids = (F.normalize(flat, dim=-1) @ F.normalize(weight, dim=-1).T).argmax(-1).view(x.shape[:-1])
    return weight[ids], ids


def encode_embeddings(model, x: Tensor, ids: Tensor) -> Tensor:
    """Runs the text tower of an open_clip `CLIP` on token embeddings x (B, S, d).

    Returns:
        Unit features (B, D), pooled at the position where `ids` (B, S) are largest.
    """
    x = x + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    return F.normalize(x[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection, dim=-1)


@dataclass
class Trace:
    """What the plain loop met.

    Attributes:
        ids: the ids of every step, each (prompt_bs, prompt_len).
        scores: the best score of every step.
        best_score, best_ids: the best score of all steps, and its ids (prompt_len,).
    """

    ids: list[Tensor] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_score: float = 0.0
    best_ids: Tensor | None = None


def optimize_prompt(
    model,
    target_features: Tensor,
    *,
    prompt_len: int,
    steps: int,
    lr: float = 0.1,
    weight_decay: float = 0.1,
    prompt_bs: int = 1,
    batch_size: int | None = 1,
    loss_weight: float = 1.0,
    start: Tensor | None = None,
    projection=nn_project,
) -> Trace:
    """Runs PEZ with CLIP as published, for one set of targets (T, D) and prompt_bs prompts.

    It draws from torch's global generator; with `start` (prompt_bs, prompt_len) the prompts begin at these ids.
    """
    weight = model.token_embedding.weight.detach()
    targets = F.normalize(target_features.detach(), dim=-1)
    if start is None:
        start = torch.randint(len(weight), (prompt_bs, prompt_len))
    p = weight[start]
    sot, eot = len(weight) - 2, len(weight) - 1
    ids = torch.zeros(prompt_bs, model.context_length, dtype=torch.int64)
    ids[:, 0], ids[:, prompt_len + 1] = sot, eot
    template = weight[ids]
    slots = slice(1, prompt_len + 1)
    trace = Trace(best_score=-1000 * loss_weight)
    state: dict = {}
    for _ in range(steps):
        drawn = targets if batch_size is None else targets[torch.randperm(len(targets))[:batch_size]]
        hard, found = projection(p, weight)
        with torch.no_grad():
            full = template.clone()
            full[:, slots] = hard
            scores = (targets @ encode_embeddings(model, full, ids).T).mean(0)
        hard = hard.detach().requires_grad_()
        full = template.clone()
        full[:, slots] = hard
        loss = loss_weight * (1 - (drawn @ encode_embeddings(model, full, ids).T).mean())
        (gradient,) = torch.autograd.grad(loss, [hard])
        p = adamw_step(p, gradient, state, lr, weight_decay)
        best = int(scores.argmax())
        trace.ids.append(found)
        trace.scores.append(float(scores[best]))
        if trace.best_score * loss_weight < float(scores[best]) * loss_weight:
            trace.best_score, trace.best_ids = float(scores[best]), found[best]
    return trace
