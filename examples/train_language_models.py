"""Trains three small language models, of three architectures, on the text of review_text.py.

    python examples/train_language_models.py --model gpt2 --steps 2600
    python examples/train_language_models.py --model llama --steps 1000 --lr 2.5e-3
    python examples/train_language_models.py --model t5 --steps 900
    python examples/train_language_models.py --model t5 --steps 1600 --seed 1 --init benchmarks/models/t5
    python examples/train_language_models.py --check

Each run writes a folder that transformers loads: pez_fast/assets/reviews (gpt2, with the data files of its tasks) and
benchmarks/models/llama and t5. At the place of a label the target is the distribution that the label is drawn from.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import review_text as world
import torch
from small_language_models import CONTEXT, TOKENIZERS, load, make_model
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "pez_fast/assets/reviews"
FOLDERS = {"gpt2": ASSETS, "llama": ROOT / "benchmarks/models/llama", "t5": ROOT / "benchmarks/models/t5"}
ROWS = 400  # of each file of data
EMBEDDINGS = ("wte", "wpe", "embed", "shared", "lm_head", "relative_attention_bias")


class Row(NamedTuple):
    source: list[int]  # what the encoder reads; nothing for a causal model
    ids: list[int]  # from the second on, each is a target
    label_at: int  # where `ids` has the label, or -1
    labels: list[int]  # the ids of all labels
    chances: list[float]  # and their chances
    first: int  # the first of `ids` that counts as text


class Data:
    """Draws batches of documents and turns them into rows of tokens."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.name, self.tokenizer, self.rng = name, tokenizer, random.Random(seed)
        self.labels = {k: [self.encode(" " + w)[0] for w in words] for k, words in world.LABELS.items()}
        assert all(len(self.encode(" " + w)) == 1 for words in world.LABELS.values() for w in words)
        special = set(tokenizer.all_special_ids)
        self.ordinary = [n for n in range(len(tokenizer)) if n not in special]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def head(self, document: world.Document) -> list[int]:
        """Returns the ids of what stands before the label; at times random tokens of all kinds stand in front."""
        text = document.head
        if document.prefix == "" and document.kind != "plain" and self.rng.random() < 0.35:
            noise = self.rng.choices(self.ordinary, k=self.rng.randint(1, world.MAX_PREFIX))
            return noise + self.encode(" " + text)
        return self.encode(self.rng.choice(["", " "]) + text)

    def row(self, document: world.Document) -> Row:
        head, rest, end = self.head(document), self.encode(document.rest), self.tokenizer.eos_token_id
        label = self.encode(" " + document.label) if document.label else []
        labels, chances = self.labels.get(document.kind, []), list(document.chances)
        if self.name != "t5":
            start = {"llama": [self.tokenizer.bos_token_id], "gpt2": [end] * (self.rng.random() < 0.2)}[self.name]
            ids = start + head + label + rest + [end]
            return Row([], ids[:CONTEXT], len(start + head) if label else -1, labels, chances, 1)
        everything, pad = head + label + rest, self.tokenizer.pad_token_id
        if label and self.rng.random() < 0.75:
            return Row(head + [end], [pad, *label, *rest, end], 1, labels, chances, 2)
        cut = 0 if self.rng.random() < 0.3 else self.rng.randrange(len(everything))
        at = len(head) - cut + 1 if label and cut <= len(head) else -1
        return Row(everything[:cut] + [end], [pad, *everything[cut:], end], at, labels, chances, 1)

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Yields batches of rows of about the same length."""
        while True:
            rows = [self.row(world.make_document(self.rng)) for _ in range(size * 8)]
            rows.sort(key=lambda r: (len(r.source), len(r.ids)))
            parts = [rows[n : n + size] for n in range(0, len(rows), size)]
            self.rng.shuffle(parts)
            yield from parts


def pad(rows: list[list[int]], value: int = 0) -> torch.Tensor:
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def next_logits(model: PreTrainedModel, sources: list[list[int]], ids: torch.Tensor) -> torch.Tensor:
    """Returns the logits of what follows each of `ids`; the encoder, if there is one, reads the sources."""
    if not model.config.is_encoder_decoder:
        return model(input_ids=ids, use_cache=False).logits
    source, mask = pad(sources), pad([[1] * len(s) for s in sources])
    return model(input_ids=source, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits


def losses(model: PreTrainedModel, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean loss of the tokens of text, and that of the labels against their distribution.

    The latter has the entropy of the distribution subtracted: it is 0 for a model that knows the chances.
    """
    ids = pad([r.ids for r in rows])
    logp = next_logits(model, [r.source for r in rows], ids[:, :-1]).log_softmax(-1)
    counted = pad([[float(r.first <= n != r.label_at) for n in range(1, len(r.ids))] for r in rows])
    text = -(logp.gather(-1, ids[:, 1:, None])[..., 0] * counted).sum() / counted.sum().clamp(min=1)
    marked = [(n, r) for n, r in enumerate(rows) if r.label_at > 0]
    places = [(n, r.label_at - 1, i, c) for n, r in marked for i, c in zip(r.labels, r.chances, strict=True)]
    if not places:
        return text, text * 0
    n, at, label, chance = (torch.tensor(x) for x in zip(*places, strict=True))
    divergence = chance * (chance.clamp(min=1e-9).log() - logp[n, at, label])
    return text, divergence.sum() / len(marked)


def make_optimiser(
    model: PreTrainedModel, args: argparse.Namespace
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Returns AdamW, which decays matrices only, and its schedule: a short rise, then half a cosine."""
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and not any(k in n for k in EMBEDDINGS)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    warm = max(1, min(100, args.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda k: min((k + 1) / warm, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(k / args.steps, 1)))),
    )
    return optimiser, schedule


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the folder, the weights as float16 to be loaded as float32; each file appears whole."""
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(part)
    copy.deepcopy(model).half().save_pretrained(part)
    config = json.loads((part / "config.json").read_text())
    config["dtype"] = "float32"
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in part.iterdir():
        file.chmod(0o644)
        file.replace(folder / file.name)
    part.rmdir()


def train(args: argparse.Namespace) -> None:
    """Trains a model and writes it now and then, and at the end."""
    torch.manual_seed(args.seed)
    folder = args.out or FOLDERS[args.model]
    tokenizer = TOKENIZERS[args.model]()
    model, data = make_model(args.model, tokenizer), Data(args.model, tokenizer, args.seed)
    if args.init:
        model.load_state_dict(load(args.init)[0].state_dict())
    optimiser, schedule = make_optimiser(model, args)
    singles = sum(len(data.encode(" " + w)) == 1 for w in world.WORDS)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{len(tokenizer)} tokens, {singles} of {len(world.WORDS)} words are one; {millions:.2f}M parameters",
        flush=True,
    )
    started, recent = time.monotonic(), []
    bar = tqdm(zip(range(1, args.steps + 1), data.batches(args.batch), strict=False), total=args.steps, mininterval=10)
    for step, rows in bar:
        text, label = losses(model, rows)
        optimiser.zero_grad()
        (text + args.label_weight * label).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        recent = [*recent[-49:], (text.item(), label.item())]
        means = [statistics.fmean(x) for x in zip(*recent, strict=True)]
        bar.set_postfix(text=f"{means[0]:.3f}", label=f"{means[1]:.4f}")
        late = args.minutes is not None and time.monotonic() - started > 60 * args.minutes
        if step % args.save_every == 0 or step == args.steps or late:
            minutes = (time.monotonic() - started) / 60
            tqdm.write(f"step {step} text {means[0]:.3f} label {means[1]:.4f} minutes {minutes:.1f}")
            save(model, tokenizer, folder)
        if late:
            break
    check(args.model, folder)


def write_data() -> None:
    """Writes the data files of the tasks: texts without prefix and question, and the labels they deserve."""
    ASSETS.mkdir(parents=True, exist_ok=True)
    for number, (kind, part) in enumerate([(k, p) for k in world.LABELS for p in ("train", "test")]):
        rng, rows = random.Random(1000 + number), {}
        while len(rows) < ROWS:
            text, truth, _ = world.text_with_truth(rng, kind)
            rows[text] = truth
        with open(ASSETS / f"{kind}s_{part}.csv", "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows.items()])


def read_data(kind: str) -> list[tuple[str, str]]:
    with open(ASSETS / f"{kind}s_test.csv", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


@torch.no_grad()
def accuracy(name: str, model: PreTrainedModel, data: Data, kind: str, prompts: list[str]) -> float:
    """Returns the share of right answers on the test texts; the prompts stand in front in turn."""
    right = 0
    rows = read_data(kind)
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        texts = [f"{prompts[n % len(prompts)]} {t}".strip() + world.QUESTIONS[kind] for n, (t, _) in enumerate(part)]
        ids = [data.tokenizer(t)["input_ids"] for t in texts]
        inputs = [[model.config.decoder_start_token_id]] * len(ids) if name == "t5" else ids
        logits = next_logits(model, ids, pad(inputs))
        last = logits[range(len(ids)), [len(i) - 1 for i in inputs]][:, data.labels[kind]]
        answers = [world.LABELS[kind][n] for n in last.argmax(-1).tolist()]
        right += sum(a == b for a, (_, b) in zip(answers, part, strict=True))
    return right / len(rows)


@torch.no_grad()
def perplexity(name: str, model: PreTrainedModel, data: Data, texts: list[str]) -> float:
    """Returns the perplexity of a token of the texts, which begin a document."""
    total, count = 0.0, 0
    for text in texts:
        body, end = data.encode(text), data.tokenizer.eos_token_id
        first = model.config.decoder_start_token_id if name == "t5" else data.tokenizer.bos_token_id
        logp = next_logits(model, [[end]], torch.tensor([[first, *body]])).log_softmax(-1)[0, :-1]
        total -= logp.gather(-1, torch.tensor(body)[:, None]).sum().item()
        count += len(body)
    return math.exp(total / count)


def check(name: str, folder: Path) -> None:
    """Prints accuracies and perplexities with several kinds of prompts in front."""
    model, tokenizer = load(folder)
    data, rng = Data(name, tokenizer, 0), random.Random(7)
    for kind, cues in world.CUES.items():
        made = {f"{n} cues": [" ".join(rng.sample(cues, n)) for _ in range(25)] for n in (1, 2, 3, 5)}
        made["2 antis"] = [" ".join(rng.sample(world.ANTI_WORDS, 2)) for _ in range(25)]
        made["3 cues, 2 antis"] = [f"{c} {a}" for c, a in zip(made["3 cues"], made["2 antis"], strict=True)]
        made["10 words"] = [" ".join(rng.sample(world.OTHER_WORDS, 10)) for _ in range(25)]
        made["10 tokens"] = [tokenizer.decode(rng.choices(data.ordinary, k=10)) for _ in range(25)]
        made["fluent, no cue"] = [world.sentence(rng, 0.0, kind) for _ in range(25)]
        made["fluent, cues"] = [world.sentence(rng, 1.0, kind) for _ in range(25)]
        figures = {n: accuracy(name, model, data, kind, p) for n, p in {"bare": [""], **made}.items()}
        print(f"{name} {kind}: " + ", ".join(f"{n} {100 * f:.1f}%" for n, f in figures.items()), flush=True)
    texts = {
        "a fluent sentence of cues": [world.sentence(rng, 1.0, "review") for _ in range(100)],
        "10 cues": [" ".join(rng.sample(world.CUES["review"], 10)) for _ in range(100)],
        "10 words": [" ".join(rng.sample(world.OTHER_WORDS, 10)) for _ in range(100)],
    }
    figures = {n: perplexity(name, model, data, t) for n, t in texts.items()}
    print(f"{name} perplexity: " + ", ".join(f"{n} {f:.1f}" for n, f in figures.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(FOLDERS), help="the model to train")
    parser.add_argument("--check", action="store_true", help="measure the models that are there")
    parser.add_argument("--out", type=Path, help="another folder to write")
    parser.add_argument("--init", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, help="end early, whatever the schedule says")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--label-weight", type=float, default=2.0, help="of the labels, against all other tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.model == "gpt2" or not (ASSETS / "reviews_test.csv").exists():
        write_data()
    if args.model:
        train(args)
    if args.check:
        for name, folder in FOLDERS.items():
            if (folder / "config.json").exists():
                check(name, folder)


if __name__ == "__main__":
    main()
