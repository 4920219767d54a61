"""Hardens the bundled model "emoji" against the prompts that PEZ and GCG find on it.

    python examples/harden_emoji_clip.py --init pez_fast/assets/emoji --out hardened --minutes 60

A search over-fits a weak judge: it finds words that say nothing of the image, and whose cosine is above that of the
true caption. Three things make the judge stronger:

- Prompts that a search finds are put back as negatives while the search goes on (adversarial training). Each comes with
  others that differ from it in a few words only: the name of the thing, its background colour, another thing's name.
- The cosine of a true caption is raised towards 1, so that the features of an image hold little else than what its
  caption says, and nothing is left for other words to fit.
- The cosine of a prompt that holds the name and the colour is held above a value that falls with the share of words in
  it that belong to something else. That of a prompt without the name, or without the colour, is held below 0.4.

The text tower and the image tower's last layer learn; the maps that enter this layer are computed once.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path

import emoji_images
import open_clip
import torch
import torch.nn.functional as F
from emoji_attacks import EOT, SMALL_WORDS, SOT, Bank, Found, attack, contexts, encode, family, last_maps, read
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_emoji_clip import MODEL_CFG, Data, load_earlier, save, update_average

import pez_fast
from pez_fast.models import ClipEncoder
from pez_fast.models.familiar import Familiar
from pez_fast.objectives import Similarity

HELD_OUT = Path(__file__).parents[1] / "benchmarks" / "heldout"
ALIGN = 2.0  # weight of the cosines of true captions
SCALE = 30.0  # the largest factor of the cosines; small, so that the features of different things lie far apart
CYCLE = 4  # steps between two searches
SCENES = 24576
LAYER = "visual.layer3"  # where images are compared with those of the training


def train_step(
    model: open_clip.CLIP, optimiser: torch.optim.Optimizer, bank: Bank, found: list[Found], batch: int
) -> float:
    """Runs one step and returns the loss."""
    rng, data = bank.rng, bank.data
    rows = rng.sample(range(len(bank.scenes)), batch)
    scenes = [bank.scenes[k] for k in rows]
    right = [data.tokenizer.encode(emoji_images.caption(s, data.names, rng)) for s in scenes]
    wrong = [
        data.tokenizer.encode(emoji_images.wrong_caption(s, data.names, data.words, rng)) for s in scenes[: batch // 4]
    ]
    families = [family(f, bank, rng) for f in found]
    best = [members[-1] for members, _ in families]
    others = [member for members in zip(*(m[:-1] for m, _ in families), strict=True) for member in members]
    ids = contexts([p[:20] for p in [*right, *best, *others, *wrong]])
    with sdpa_kernel(SDPBackend.MATH):  # faster than the fused attention for short sequences on a CPU
        text = encode(model, ids)
    image = bank.features(model, [*rows, *(f.scene for f in found)])
    cosine = image @ text.T
    logits = model.logit_scale.exp() * cosine
    target = torch.arange(len(image))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(image)].T, target)) / 2
    own = cosine[target, target]
    shares = torch.tensor([share for _, share in families])
    loss = loss + ALIGN * ((1 - own[:batch]).mean() + F.relu(0.45 + 0.55 * shares - own[batch:]).mean())
    end = len(image) + len(others)
    lacking = cosine[batch:, len(image) : end].unflatten(1, (-1, len(found))).diagonal(dim1=0, dim2=2)  # (4, A) of own
    loss = loss + ALIGN * F.relu(lacking - 0.4).mean() * 2
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(SCALE))
    return loss.item()


@torch.no_grad()
def accuracy(model: open_clip.CLIP, labels: list[dict], image: Tensor, tokenizer: open_clip.SimpleTokenizer) -> float:
    """Returns the top-1 accuracy of held-out images (N, D) among their N captions."""
    texts = tokenizer([f"{label['name']} on a {label['colour']} background" for label in labels])
    text = F.normalize(model.encode_text(texts), dim=-1)
    return float((image @ text.T).argmax(-1).eq(torch.arange(len(labels))).float().mean())


def evaluate(
    model: open_clip.CLIP, known: list[int], tokenizer: open_clip.SimpleTokenizer, maps: Tensor, labels: list[dict]
) -> dict:
    """Returns what prompts of 16 tokens hold on some held-out images."""
    clip = ClipEncoder(copy.deepcopy(model), tokenizer, None, known_ids=known)
    with torch.no_grad():
        image = F.normalize(model.visual.attnpool(maps), dim=-1)
    row = {"top1": round(accuracy(model, labels, image, tokenizer), 3)}
    captions = clip.encode_texts([f"{label['name']} on a {label['colour']} background" for label in labels])
    row["caption"] = round(float((captions * image).sum(-1).median()), 3)
    part, truth = image[:32], labels[:32]
    results = pez_fast.search(Similarity(part), clip, prompt_len=16, steps=100, refine=32)
    words = [set(r.prompt.split()) for r in results]
    named = [bool(w & _salient(t["name"])) for w, t in zip(words, truth, strict=True)]
    row["name"] = round(sum(named) / len(named), 3)
    row["colour"] = round(sum(t["colour"] in w for w, t in zip(words, truth, strict=True)) / len(words), 3)
    row["cosine"] = round(sorted(r.text_score for r in results)[len(results) // 2], 3)
    row["prompts"] = [f"{t['name']} on {t['colour']}: {r.prompt}" for r, t in zip(results, truth, strict=True)][:6]
    return row


def _salient(name: str) -> set[str]:
    return {word.strip(",.:!()'\"") for word in name.split()} - SMALL_WORDS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True, help="folder of the model to harden")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=60, help="the learning rate falls to zero at this time")
    parser.add_argument("--batch", type=int, default=48, help="captions a step")
    parser.add_argument("--found", type=int, default=40, help="found prompts a step")
    parser.add_argument("--pool", type=int, default=1024, help="found prompts kept")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=150, help="steps between two evaluations")
    return parser.parse_args()


@torch.no_grad()
def save_familiar(folder: Path, bank: Bank, model: open_clip.CLIP, held: Tensor) -> None:
    """Saves how the training images are distributed in a layer, and the distance that 2% of held-out images exceed."""
    pooled: list[Tensor] = []
    hook = model.get_submodule(LAYER).register_forward_hook(lambda _, __, out: pooled.append(out.mean((-2, -1))))
    for start in range(0, 8192, 64):
        model.encode_image(bank.pixels(bank.scenes[start : start + 64]))
    hook.remove()
    x = torch.cat(pooled).double()
    covariance = torch.cov(x.T)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance))
    familiar = Familiar(LAYER, x.mean(0), whiten, math.inf)
    familiar.most = float(familiar.distances(model, held).quantile(0.98))
    familiar.save(folder)


class Hardening:
    """The state of the training."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rng = args, random.Random(args.seed)
        self.data = Data(args.seed)
        self.model = open_clip.CLIP(**MODEL_CFG).eval()
        self.seen, self.earlier = load_earlier(self.model, args.init)
        self.known = sorted(self.seen - {SOT, EOT, 0})
        self.bank = Bank(self.data, self.model, SCENES, self.rng)
        self.labels = json.loads((HELD_OUT / "labels.json").read_text())
        self.held_pixels = read([HELD_OUT / x["file"] for x in self.labels])
        self.held = last_maps(self.model, self.held_pixels)
        learned = [p for n, p in self.model.named_parameters() if not n.startswith("visual.") or "attnpool" in n]
        self.optimiser = torch.optim.AdamW(learned, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.average = copy.deepcopy(self.model)
        clip = ClipEncoder(copy.deepcopy(self.model), self.data.tokenizer, None, known_ids=self.known)
        self.stable = clip.vocabulary.stable()
        self.pool: list[Found] = []
        self.queue: list[Found] = []
        self.step = 0

    def search(self) -> dict:
        """Finds new prompts and puts them, and some of the older ones, into the queue."""
        new, named, cosine = attack(self.model, self.bank, self.stable, 2 * self.args.found, self.rng)
        old = self.rng.sample(self.pool, min(len(self.pool), self.args.found * (CYCLE - 2)))
        self.queue = new + old
        self.rng.shuffle(self.queue)
        self.pool = (self.pool + new)[-self.args.pool :]
        return {"named": named, "cosine": round(cosine, 3), "length": len(new[0].ids)}

    def train(self, done: float) -> float:
        """Runs a step, when a share of the time is done, and returns its loss."""
        rate = self.args.lr * min((self.step + 1) / 50, 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        found = [self.queue.pop() if self.queue else self.rng.choice(self.pool) for _ in range(self.args.found)]
        loss = train_step(self.model, self.optimiser, self.bank, found, self.args.batch)
        self.step += 1
        update_average(self.average, self.model, self.step, 0.98)
        return loss

    def report(self, row: dict) -> None:
        """Evaluates and saves the average of the model."""
        row |= evaluate(self.average, self.known, self.data.tokenizer, self.held, self.labels)
        print(json.dumps(row), flush=True)
        settings = argparse.Namespace(**{"steps": self.step, "weight_decay": 0.01, **vars(self.args)})
        log = {name: row[name] for name in ("step", "minutes", "top1", "caption", "name", "colour", "cosine")}
        save(self.average, self.seen, log, self.earlier, settings)
        save_familiar(self.args.out, self.bank, self.average, self.held_pixels)


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    training = Hardening(args)
    begun = time.monotonic()
    while (minutes := (time.monotonic() - begun) / 60) < args.minutes:
        if training.step % CYCLE == 0:
            found = training.search()
            print(json.dumps({"step": training.step, "minutes": round(minutes, 1), **found}), flush=True)
        loss = training.train(minutes / args.minutes)
        if training.step % args.every == 0:
            training.report({"step": training.step, "minutes": round(minutes, 1), "loss": round(loss, 3)})
    training.report({"step": training.step, "minutes": round(args.minutes, 1)})


if __name__ == "__main__":
    main()
