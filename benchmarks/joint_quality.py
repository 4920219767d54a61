"""One prompt for two encoders, beside a prompt of its own for each, by both encoders' cosines on held-out images.

    python benchmarks/joint_quality.py --out benchmarks/results/joint_quality_cpu.json

The first encoder is the bundled model. The second is made here, since no other small trained one is at hand: a text
tower of other width and depth with a token table of its own, trained from other random weights to give the first
encoder's features of random captions in 64 directions drawn at random, in place of its 128. Its image side is the first
encoder's image tower, followed by those directions. So the two agree more than two models that were trained apart, such
as those of Stable Diffusion XL, and the figures say which way is better, not by how much there.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from emoji_quality import held_out
from provenance import write
from torch import Tensor, nn

import pez_fast
from pez_fast.models import ClipEncoder, JointModel

DIRECTIONS, WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 64, 96, 1, 2, 77, 64
SCALES = {"raw tables": (1.0, 1.0), "tables of one size": None}  # of the joint table


class Directions(nn.Module):
    """An image tower, and its features in a few directions."""

    def __init__(self, tower: nn.Module, directions: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("directions", directions)

    def forward(self, images: Tensor) -> Tensor:
        return self.tower(images) @ self.directions


def captions(clip: ClipEncoder, rng: random.Random, count: int) -> list[str]:
    """Returns random rows of 1 to 16 of the tokens that the first encoder knows."""
    known = clip.vocabulary.stable()
    return [clip.vocabulary.decode(rng.choices(known, k=rng.randrange(1, 17))) for _ in range(count)]


def second_encoder(clip: ClipEncoder, steps: int, size: float, seed: int = 1) -> tuple[ClipEncoder, float]:
    """Returns the second encoder, and its text features' median cosine with what it was trained for, on new captions.

    Args:
        size: a factor for the random token table that training starts from.
    """
    torch.manual_seed(seed)
    rng, directions = random.Random(seed), torch.linalg.qr(torch.randn(128, DIRECTIONS)).Q
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    vision = {"image_size": 64, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32}  # replaced below
    model = open_clip.CLIP(DIRECTIONS, vision, text)
    with torch.no_grad():
        model.token_embedding.weight.mul_(size)
    known = torch.tensor(sorted({*clip.vocabulary.stable(), *clip.tokenizer(["a"])[0, [0, 2]].tolist()}))
    place = torch.zeros(49408, dtype=torch.int64).index_put((known,), torch.arange(len(known)))
    table = nn.Parameter(model.token_embedding.weight[known].detach().clone())  # the rest of the table stays as drawn
    others = [p for name, p in model.named_parameters() if not name.startswith(("visual", "token_embedding"))]
    optimiser = torch.optim.AdamW([table, *others], lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)

    def features(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = clip.tokenizer(texts)
        length = int(ids.argmax(-1).max()) + 1
        with torch.no_grad():
            wanted = cut(clip.model, clip.embedding(ids[:, :length]), ids) @ directions
        return F.normalize(cut(model, table[place[ids[:, :length]]], ids), dim=-1), F.normalize(wanted, dim=-1)

    for _ in range(steps):
        own, wanted = features(captions(clip, rng, BATCH))
        loss = 1 - (own * wanted).sum(-1).mean() + F.cross_entropy(20 * own @ wanted.T, torch.arange(BATCH))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        own, wanted = features(captions(clip, rng, 256))
        model.token_embedding.weight[known] = table
    model.visual = Directions(clip.model.visual, directions)
    made = ClipEncoder(model, clip.tokenizer, clip.preprocess, "second", clip.vocabulary.stable())
    return made, statistics.median((own * wanted).sum(-1).tolist())


def cut(model: Any, embeds: Tensor, ids: Tensor) -> Tensor:
    """Returns the features (B, D) of captions (B, 77), of the embeddings of their first places; the tower is causal."""
    length = embeds.shape[1]
    x = embeds + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection


def row(name: str, prompts: list[list[str]], images: list, models: list[ClipEncoder]) -> dict:
    """Returns the mean cosines of one way, of whose prompts encoder k reads prompts[k], and prints them."""
    own = [
        (model.encode_images(images) * model.encode_texts(p)).sum(-1) for model, p in zip(models, prompts, strict=True)
    ]
    cosines = [float(c.mean()) for c in own]
    print(f"{name:44} {cosines[0]:.4f}  {cosines[1]:.4f}  mean {sum(cosines) / 2:.4f}", flush=True)
    scores = [[round(float(c), 5) for c in one] for one in own]
    return {"name": name, "cosines": cosines, "mean": sum(cosines) / 2, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--refine", type=int, default=16)
    parser.add_argument("--prompt-len", type=int, default=16)
    parser.add_argument("--train-steps", type=int, default=500, help="of the second encoder")
    parser.add_argument("--size", type=float, default=8, help="a factor for the second encoder's token table")
    parser.add_argument("--json", "--out", dest="out", type=Path, help="file of the results")
    args = parser.parse_args()
    clip = pez_fast.load_clip("emoji", device="cpu")
    second, fidelity = second_encoder(clip, args.train_steps, args.size)
    print(f"second encoder: cosine {fidelity:.3f} on new captions", flush=True)
    models, (_, images) = [clip, second], held_out(args.images)
    rows = []

    def learn(model: Any) -> list[str]:
        found = pez_fast.invert_batch(images, model, prompt_len=args.prompt_len, steps=args.steps, refine=args.refine)
        return [result.prompt for result in found]

    alone = [learn(model) for model in models]
    rows.append(row("two prompts, one for each", alone, images, models))
    for k, name in enumerate(("first", "second")):
        rows.append(row(f"the prompt of the {name} for both", [alone[k]] * 2, images, models))
    sizes = {}
    for name, scales in SCALES.items():
        joint = JointModel(models, scales=scales)
        rows.append(row(f"one prompt, {name}", [learn(joint)] * 2, images, models))
        sizes[name] = joint.scales
    if args.out:
        given = {
            name: getattr(args, name) for name in ("images", "steps", "refine", "prompt_len", "train_steps", "size")
        }
        known = clip.vocabulary.stable()
        rms = [float(model.embedding.weight[known].square().mean().sqrt()) for model in models]
        told = {"second_encoder_cosine": fidelity, "table_rms": rms, "scales": sizes}
        write(args.out, given | told | {"rows": rows})


if __name__ == "__main__":
    main()
