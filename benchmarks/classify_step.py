"""Time of one step of prompt learning for classification beside a plain port of the original's loop, in one run.

    python benchmarks/classify_step.py --out benchmarks/results/classify_step_cpu.json

Both learn prompts of 10 tokens for a GPT-2 (the small one's shapes, random weights, float32) with minibatches of 16
texts and two labels of one token. The lengths of the texts are drawn so that their mean is that of the phrases of SST-2
(12 tokens), or of its sentences (25). The plain port pads every text to 128 tokens, puts the prompt's embeddings in
front of each, computes all logits, normalises the table at every projection, and learns one prompt after the other; it
keeps the soft prompts, which the original loses. Parity is checked first: from the same start both must find the same
ids, and the same losses to 1e-4, for five steps.
"""

from __future__ import annotations

import argparse
import itertools
import random
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from in_turn import compared, times_in_turn
from provenance import write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pez_fast.engine import BatchLimit, Request, Scheduler, Stage
from pez_fast.labelled import Template, draws
from pez_fast.methods import PEZMethod
from pez_fast.models.language import Examples, LabelModel, LabelTask, LanguageModel
from pez_fast.models.language.task import BoundLabels
from pez_fast.objectives import LabelLoss
from pez_fast.table import TokenTable

LENGTH, MINIBATCH, PADDED, WORDS = 10, 16, 128, ["w7", "w8"]
PLAIN_STEPS = 2  # steps of the plain port that are timed together
SHAPES = {"tiny": (64, 2, 2), "gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20)}


def build(shape: str, device: str) -> LanguageModel:
    """Returns a GPT-2 with random weights, and a tokenizer whose tokens are the words w0, w1, …"""
    width, layers, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
    vocabulary = {f"w{k}": k for k in range(config.vocab_size - 1)} | {"<unk>": config.vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return LanguageModel(GPT2LMHeadModel(config).to(device), fast, f"{shape}, random weights")


def make_task(mean: float, count: int = 512) -> LabelTask:
    """Returns a task of random texts with lognormal lengths of this mean, from 1 to 60 tokens."""
    rng = random.Random(0)
    lengths = [min(60, max(1, round(rng.lognormvariate(0, 0.7) * mean / 1.28))) for _ in range(count)]
    rows = [{"text": " ".join(f"w{rng.randrange(50000)}" for _ in range(length))} for length in lengths]
    examples = Examples(rows, [rng.randrange(2) for _ in rows])
    template = Template.parse("{prompt}{text} w1 w2 {label}")
    return LabelTask(
        template, WORDS, examples, Examples(rows[:4], examples.classes[:4]), MINIBATCH, held_out_every=10**6
    )


class PlainLoop:
    """The plain port: one prompt, padded texts, all logits, a table that is normalised at every step."""

    def __init__(self, lm: LanguageModel, task: LabelTask, init_ids: torch.Tensor) -> None:
        self.model, self.weight, self.task = lm.model, lm.embedding.weight, task
        self.labels = torch.tensor([lm.vocabulary.encode(word)[0] for word in task.words], device=lm.device)
        self.texts = [lm.vocabulary.encode(task.template.render("", row)) for row in task.train.rows]
        self.classes, self.allowed = torch.tensor(task.train.classes, device=lm.device), lm.table().allowed
        self.prompt = self.weight[init_ids].clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.prompt], lr=0.1, weight_decay=0.1)
        self.ids: list[torch.Tensor] = []
        self.losses: list[float] = []

    def project(self) -> torch.Tensor:
        """Returns the ids (L,) of the nearest tokens."""
        cosine = F.normalize(self.prompt.detach(), dim=-1) @ F.normalize(self.weight, dim=-1).T
        return cosine.masked_fill(~self.allowed, -torch.inf).argmax(-1)

    def step(self, seed: int, number: int) -> None:
        examples = draws(seed, number, MINIBATCH, len(self.texts))
        ids = self.project()
        hard = self.weight[ids].detach().requires_grad_()
        padded = torch.zeros(MINIBATCH, PADDED, dtype=torch.int64, device=hard.device)
        mask = torch.zeros(MINIBATCH, LENGTH + PADDED, dtype=torch.int64, device=hard.device)
        for row, k in enumerate(examples):
            padded[row, : len(self.texts[k])] = torch.tensor(self.texts[k])
            mask[row, : LENGTH + len(self.texts[k])] = 1
        embeds = torch.cat([hard.expand(MINIBATCH, -1, -1), self.weight[padded]], 1)
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        last = logits[torch.arange(MINIBATCH, device=hard.device), mask.sum(1) - 1][:, self.labels]
        loss = F.cross_entropy(last, self.classes[examples])
        (self.prompt.grad,) = torch.autograd.grad(loss, hard)
        self.optimizer.step()
        self.ids.append(ids)
        self.losses.append(float(loss.detach()))


class Recorded(LabelLoss):
    """A `LabelLoss` that records the ids and losses that it sees."""

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, outputs, ids):
        loss, score = super().__call__(outputs, ids)
        if loss.requires_grad:
            self.seen.append((ids, loss.detach()))
        return loss, score


def run(bound: BoundLabels, table: TokenTable, init_ids: torch.Tensor, steps: int, objective=None) -> None:
    """Runs what a task runs, except the final scoring of the texts."""
    rows = len(init_ids)
    requests = [Request(tuple(range(rows)), init_ids, objective or LabelLoss([0.0] * rows))]
    stages, limit = [Stage(PEZMethod(), steps, top_k=4)], BatchLimit(rows, rows)
    next(iter(Scheduler(table, bound, lambda room: requests.pop() if requests else None, stages, limit).run()))


def check_parity(lm: LanguageModel, model: LabelModel, init_ids: torch.Tensor, steps: int = 5) -> None:
    """Checks that pez_fast finds the ids and the losses of the plain port."""
    plain, objective = PlainLoop(lm, model.task, init_ids[0]), Recorded([0.0])
    Recorded.seen = []
    run(model.bind(LENGTH), lm.table(), init_ids[:1], steps, objective)
    for k in range(steps):
        plain.step(0, k)
        ids, loss = Recorded.seen[k]
        assert torch.equal(ids[0], plain.ids[k]), f"other ids at step {k}"
        assert abs(float(loss[0]) - plain.losses[k]) < 1e-4, f"another loss at step {k}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--means", type=float, nargs="+", default=[12, 25], help="mean tokens of a text")
    parser.add_argument("--steps", type=int, default=6, help="of a search of pez_fast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="dtypes of pez_fast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lm, rows = build(args.shape, args.device), []
    generator = torch.Generator().manual_seed(1)
    init_ids = torch.randint(50000, (max(args.prompts), LENGTH), generator=generator).to(args.device)
    for mean in args.means:
        model = LabelModel(lm, make_task(mean))
        check_parity(lm, model, init_ids)
        print(f"{lm.name}, texts of {mean:g} tokens, {args.device}, {torch.get_num_threads()} threads; parity holds")
        times = measure(args, lm, model, init_ids)
        facts = {"model": args.shape, "mean_tokens": mean, "minibatch": MINIBATCH}
        rows += compared(times, ("plain port", 1, "float32"), **facts)
    if args.out:
        write(args.out, rows)


def measure(args: argparse.Namespace, lm: LanguageModel, model: LabelModel, init_ids: torch.Tensor) -> dict:
    """Returns the times of the plain port and of pez_fast, taken in turn so that all see the same machine."""
    loop, steps, table = PlainLoop(lm, model.task, init_ids[0]), iter(range(10**6)), lm.table()

    def plain() -> None:
        for _ in range(PLAIN_STEPS):
            loop.step(0, next(steps))

    works: dict = {("plain port", 1, "float32"): (plain, PLAIN_STEPS)}
    for dtype, count in itertools.product(args.dtypes, args.prompts):
        bound = model.bind(LENGTH, dtype=getattr(torch, dtype))
        work = partial(run, bound, table, init_ids[:count], args.steps)
        works["pez_fast", count, dtype] = work, args.steps * count
    return times_in_turn(works, args.repeats)


if __name__ == "__main__":
    main()
