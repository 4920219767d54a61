r"""Trains the bundled model "emoji": a small CLIP on images that an emoji font renders.

    python examples/train_emoji_clip.py --out pez_fast/assets/emoji --steps 8000

With `--shape vit` it trains another architecture, which serves as referee of the bundled model's prompts:

    python examples/train_emoji_clip.py --out benchmarks/models/referee --shape vit --seed 7 --batch 128 \
        --lr 1.5e-3 --minutes 16

The training is contrastive (Radford et al. 2021); captions that do not fit are additional negatives for the images.
The result is a folder that open_clip loads as `local-dir:`. Its `tokens.json` lists the ids that occurred in captions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import NamedTuple

import emoji_images
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

SIZE = 64
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MODEL_CFG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": [2, 2, 2, 2], "width": 20, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
VIT_CFG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 48, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3},
}
SHAPES = {"resnet": MODEL_CFG, "vit": VIT_CFG}


class Batch(NamedTuple):
    images: torch.Tensor  # (B, 3, size, size), normalised
    right: torch.Tensor  # (B, 77), the ids of the caption of each image
    wrong: torch.Tensor  # (2 B / 3, 77), the ids of captions that fit no image


class Data:
    """Draws batches: images of the emoji with `size` pixels a side, their captions, and captions that do not fit."""

    def __init__(self, seed: int, size: int = SIZE, font: Path = emoji_images.FONT) -> None:
        self.rng, self.size = random.Random(seed), size
        drawn = emoji_images.load_glyphs(font)
        self.names = [g.name for g in drawn]
        self.glyphs = emoji_images.stack_glyphs(drawn)
        self.words = sorted({w for n in self.names for w in n.split()} | set(emoji_images.COLOUR_NAMES))
        self.tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def batch(self, size: int) -> Batch:
        rng, names = self.rng, self.names
        long = rng.random() < 0.04
        scenes = [emoji_images.random_scene(rng, len(names), pair=rng.random() < 0.4) for _ in range(size)]
        right = self.tokenizer([emoji_images.caption(s, names, rng, long) for s in scenes])
        wrong = self.tokenizer([emoji_images.wrong_caption(s, names, self.words, rng) for s in scenes[: size * 2 // 3]])
        oversample = 2 if rng.random() < 0.3 else 1
        return Batch(normalised(emoji_images.compose(scenes, self.glyphs, self.size, oversample)), right, wrong)


def encode_text(model: open_clip.CLIP, ids: torch.Tensor) -> torch.Tensor:
    """Computes `model.encode_text` over only as many positions as the longest caption needs; the tower is causal."""
    length = int(ids.argmax(-1).max()) + 1
    ids = ids[:, :length]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(x @ model.text_projection, dim=-1)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, wrong: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(image))
    logits = scale * image @ torch.cat([text, wrong]).T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(text)].T, target)) / 2


@torch.no_grad()
def held_out_accuracy(model: open_clip.CLIP, data: Data) -> tuple[float, float]:
    """Returns two top-1 accuracies on 500 held-out images.

    The first is among their 500 captions, the second among the captions of the right emoji with each of 12 colours."""
    scenes = emoji_images.held_out_scenes(500, len(data.names), seed=1)
    image = F.normalize(model.encode_image(normalised(emoji_images.compose(scenes, data.glyphs, data.size))), dim=-1)
    text = [f"{data.names[s.glyphs[0]]} on a {{}} background" for s in scenes]
    right = [t.format(emoji_images.COLOUR_NAMES[s.colour]) for t, s in zip(text, scenes, strict=True)]
    own = encode_text(model, data.tokenizer(right))
    top1 = (image @ own.T).argmax(-1).eq(torch.arange(len(scenes))).float().mean()
    coloured = encode_text(model, data.tokenizer([t.format(c) for t in text for c in emoji_images.COLOUR_NAMES]))
    best = torch.einsum("bd,bcd->bc", image, coloured.view(len(scenes), -1, coloured.shape[-1])).argmax(-1)
    return float(top1), float(best.eq(torch.tensor([s.colour for s in scenes])).float().mean())


def train_step(model: open_clip.CLIP, optimiser: torch.optim.Optimizer, batch: Batch) -> torch.Tensor:
    """Runs one step of the optimiser on a batch and returns the loss."""
    # The fused attention of torch is slower than the plain one for short sequences on a CPU.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        image = F.normalize(model.encode_image(batch.images.to(memory_format=torch.channels_last)), dim=-1)
        text = encode_text(model, torch.cat([batch.right, batch.wrong]))
    text, wrong = text.float().split([len(batch.right), len(batch.wrong)])
    loss = contrastive_loss(image.float(), text, wrong, model.logit_scale.exp())
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss


@torch.no_grad()
def update_average(average: open_clip.CLIP, model: open_clip.CLIP, step: int, most: float = 0.998) -> None:
    """Moves the parameters of `average` towards the model's, and copies the model's buffers.

    `most` is the largest share that stays.
    """
    decay = min(most, step / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)


def make_optimiser(
    model: open_clip.CLIP, args: argparse.Namespace
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Returns AdamW, which decays no embedding and no vector, and its schedule: a short rise, then half a cosine."""
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    warm, started = min(200, args.steps // 10), time.monotonic()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min((k + 1) / warm, 0.5 * (1 + math.cos(math.pi * share_done(k, started, args))))
    )
    return optimiser, schedule


def share_done(step: int, started: float, args: argparse.Namespace) -> float:
    """Returns how much of the training is done, by its steps or its minutes, whichever ends first."""
    return min(1.0, max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes)))


def load_earlier(model: open_clip.CLIP, folder: Path) -> tuple[set[int], list[dict]]:
    """Loads the weights of an earlier run; returns the ids that its captions held, and the records of its training."""
    state = load_file(folder / "open_clip_model.safetensors")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    record = json.loads((folder / "tokens.json").read_text())
    return set(record["tokens_seen"]), record["training"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--shape", choices=SHAPES, default="resnet")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the training after so many minutes")
    parser.add_argument("--font", type=Path, default=emoji_images.FONT)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    shape = SHAPES[args.shape]
    data = Data(args.seed, shape["vision_cfg"]["image_size"], args.font)
    model = open_clip.CLIP(**shape)
    seen, earlier = load_earlier(model, args.init) if args.init else (set(), [])
    model.visual.to(memory_format=torch.channels_last)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{len(data.names)} emoji, {len(data.words)} words, {millions:.1f}M parameters", flush=True)
    optimiser, schedule = make_optimiser(model, args)
    average = open_clip.CLIP(**shape).eval()
    average.load_state_dict(model.state_dict())
    started = time.monotonic()
    bar = tqdm(range(1, args.steps + 1), mininterval=10)
    for step in bar:
        batch = data.batch(args.batch)
        seen.update(batch.right.unique().tolist())
        loss = train_step(model, optimiser, batch)
        schedule.step()
        update_average(average, model, step)
        ends = share_done(step, started, args) == 1
        if step % args.save_every == 0 or ends:
            top1, colour = held_out_accuracy(average, data)
            log = {
                "step": step,
                "loss": round(loss.item(), 4),
                "held_out_top1_of_500": round(top1, 4),
                "held_out_colour_of_12": round(colour, 4),
                "minutes": round((time.monotonic() - started) / 60, 1),
            }
            tqdm.write(json.dumps(log))
            save(average, seen, log, earlier, args, shape)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if ends:
            break


def config_of(model_cfg: dict) -> dict:
    """Returns what open_clip reads beside the weights: the architecture and how images are prepared."""
    prepared = {"size": model_cfg["vision_cfg"]["image_size"], "mode": "RGB", "mean": MEAN, "std": STD}
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {**prepared, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def save(
    model: open_clip.CLIP,
    seen: set[int],
    log: dict,
    earlier: list[dict],
    args: argparse.Namespace,
    model_cfg: dict = MODEL_CFG,
) -> None:
    """Writes weights, configuration and the record of the training."""
    args.out.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(state, args.out / "open_clip_model.safetensors", metadata={"format": "pt"})
    (args.out / "open_clip_config.json").write_text(json.dumps(config_of(model_cfg), indent=2) + "\n")
    run = {
        "seed": args.seed,
        "steps": args.steps,
        "batch": args.batch,
        "lr": args.lr,
        "weight_decay": args.weight_decay,
        **log,
    }
    (args.out / "tokens.json").write_text(json.dumps({"training": [*earlier, run], "tokens_seen": sorted(seen)}) + "\n")


if __name__ == "__main__":
    main()
