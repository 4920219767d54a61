"""PEZ in a loop of your own, on any torch model: python examples/own_loop.py [--prompts 16] [--steps 300]

The model is a small transformer with random weights; the prompts are to give the same features as a secret one.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

import pez_fast

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--prompts", type=int, default=16, help="prompts learned at once")
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()

torch.manual_seed(0)
words = sorted({word for word in torch.nn.Transformer.__doc__.lower().split() if word.isalpha()})
embedding = torch.nn.Embedding(len(words), 32).requires_grad_(False)
positions = torch.randn(6, 32)
layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().requires_grad_(False)
ends = torch.tensor([words.index("a"), 0, 0, 0, 0, words.index("model")])  # four learned words between two fixed ones
template, slots = embedding(ends).expand(args.prompts, -1, -1), torch.arange(1, 5)
secret = torch.randint(len(words), (1, 4))
goal = model(pez_fast.splice(template[:1], embedding(secret), slots) + positions).mean(1)

table = pez_fast.TokenTable(embedding)  # prepared once
soft = embedding(torch.randint(len(words), (args.prompts, 4)))
opt = pez_fast.PEZ(soft, table, lr=0.1)  # AdamW on the soft prompts
best = -1.0
for step in range(args.steps):
    hard, ids = opt.project()  # the nearest tokens; without the optimiser: pez_fast.project(soft, table)
    features = model(pez_fast.splice(template, hard, slots) + positions).mean(1)
    cosine = F.cosine_similarity(features, goal)
    if cosine.max() > best:
        best = cosine.max().item()
        print(f"step {step:3}  cosine {best:.3f}  a {' '.join(words[i] for i in ids[cosine.argmax()])} model")
    if best > 0.9999:
        break
    (1 - cosine).sum().backward()  # straight through the projection, onto the soft prompts
    opt.step()
    opt.zero_grad()
print(f"the secret prompt is    a {' '.join(words[i] for i in secret[0])} model")
