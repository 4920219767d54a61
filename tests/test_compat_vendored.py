"""`compat` beside a folder `open_clip` that hides the installed one, as the original's repository holds an old copy.

The stand-ins here have the interface of that copy: a tokenizer that cannot be called and knows neither `sot_token_id`
nor `context_length`, and a model whose blocks take the batch second and which encodes embeddings itself.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from test_compat import CONFIG
from torch import nn

import pez_fast
from pez_fast import compat, reference

ARGS = {**CONFIG, "prompt_len": 4, "iter": 25, "clip_model": "old"}
START, END = "<start_of_text>", "<end_of_text>"


class OldTokenizer:
    """The words of today's tokenizer with no more than the old one's attributes."""

    def __init__(self, today):
        self.encoder, self.decoder = today.encoder, today.decoder
        self.vocab_size, self.all_special_ids = len(self.encoder), [self.encoder[START], self.encoder[END]]
        self.encode, self.decode = today.encode, today.decode

    def tokenize(self, texts, context_length=77):
        rows = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.encoder[START], *self.encode(text), self.encoder[END]]
            row[: len(ids)] = torch.tensor(ids)
        return rows


class OldBlocks(nn.Module):
    """Transformer blocks that take (S, R, d), and the method that says the dtype of their arithmetic."""

    def __init__(self, width, layers):
        super().__init__()
        layer = [nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, F.gelu, norm_first=True) for _ in range(layers)]
        self.resblocks = nn.ModuleList(layer)

    def get_cast_dtype(self):
        return self.resblocks[0].linear1.weight.dtype

    def forward(self, x, attn_mask=None):
        for block in self.resblocks:
            x = block(x, src_mask=attn_mask)
        return x


class OldClip(nn.Module):
    """A CLIP with the attributes of the original's copy, `forward_text_embedding` included; it has no `pool_type`."""

    def __init__(self, width=32, vocabulary=49408):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(77, width))
        self.transformer, self.ln_final = OldBlocks(width, 2), nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width) / 6)
        self.visual = nn.Linear(3 * 8 * 8, width)
        self.register_buffer("attn_mask", torch.full((77, 77), -torch.inf).triu(1), persistent=False)

    def encode_image(self, image, normalize: bool = False):
        features = self.visual(image.flatten(1))
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text, normalize: bool = False):
        return self.encode_text_embedding(self.token_embedding(text), text)

    def encode_text_embedding(self, embeddings, ids):
        x = embeddings.to(self.transformer.get_cast_dtype()) + self.positional_embedding
        x = self.ln_final(self.transformer(x.permute(1, 0, 2), attn_mask=self.attn_mask).permute(1, 0, 2))
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection

    def forward_text_embedding(self, embeddings, ids, image_features):
        text = F.normalize(self.encode_text_embedding(embeddings, ids), dim=-1)
        scores = F.normalize(image_features, dim=-1) @ text.T
        return scores, scores.T


def plain_text(model, tokenizer, targets, args) -> str:
    """The original's loop through the model's own `forward_text_embedding`."""
    prompt, fixed, ids = compat.initialize_prompt(tokenizer, model.token_embedding, args, "cpu")
    optimizer = torch.optim.AdamW([prompt], lr=args.lr, weight_decay=args.weight_decay)
    best, best_text = -torch.inf, ""
    for _ in range(args.iter):
        drawn = targets[torch.randperm(len(targets))[: args.batch_size]]
        weight = model.token_embedding.weight.detach()
        found = reference.nearest_token(prompt.detach().flatten(0, 1), weight)[0].view(prompt.shape[:2])
        hard = weight[found].requires_grad_()
        whole = fixed.clone()
        whole[ids == -1] = hard.flatten(0, 1)
        scores = model.forward_text_embedding(whole, ids, targets)[0].mean(0)
        loss = 1 - model.forward_text_embedding(whole, ids, drawn)[0].mean()
        prompt.grad = torch.autograd.grad(loss, hard)[0]
        optimizer.step()
        if scores.max().item() > best:
            best, best_text = scores.max().item(), tokenizer.decode(found[scores.argmax()].tolist())
    return best_text


@pytest.fixture
def old(monkeypatch):
    """An old open_clip in place of the installed one, and a model of its kind in float64."""
    from open_clip.tokenizer import _tokenizer

    torch.manual_seed(0)
    module = ModuleType("open_clip")
    module.__file__ = "/home/me/hard-prompts-made-easy/open_clip/__init__.py"
    module.tokenizer = ModuleType("open_clip.tokenizer")
    module.tokenizer._tokenizer = OldTokenizer(_tokenizer)
    module.tokenize = module.tokenizer._tokenizer.tokenize
    module.model = OldClip().double()
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


def preprocess(image):
    return torch.tensor(list(image.resize((8, 8)).tobytes()), dtype=torch.float64).view(3, 8, 8) / 255 - 0.5


@pytest.mark.parametrize("changes", [{}, {"prompt_bs": 3}, {"batch_size": 2}])
def test_images_give_the_text_of_the_originals_loop(old, images, changes):
    args = Namespace(**{**ARGS, **changes})
    compat.set_random_seed(1)
    text = compat.optimize_prompt(old.model, preprocess, args, "cpu", target_images=images[:3])
    compat.set_random_seed(1)
    with torch.no_grad():
        targets = old.model.encode_image(torch.stack([preprocess(image) for image in images[:3]]))
    assert text == plain_text(old.model, old.tokenizer._tokenizer, targets, args) and text


def test_texts_give_the_text_of_the_originals_loop(old):
    args, texts = Namespace(**ARGS), ["a photo of a cat", "an oil painting of a boat"]
    compat.set_random_seed(2)
    text = compat.optimize_prompt(old.model, None, args, "cpu", target_prompts=texts)
    compat.set_random_seed(2)
    with torch.no_grad():
        targets = old.model.encode_text(old.tokenize(texts))
    assert text == plain_text(old.model, old.tokenizer._tokenizer, targets, args) and text


def test_a_folder_that_is_no_open_clip_is_named(old, images):
    args = Namespace(**ARGS)
    old.tokenizer = None
    sentence = "open_clip was imported from /home/me/hard-prompts-made-easy/open_clip, which has no tokenizer"
    with pytest.raises(
        ImportError, match=f"{sentence} and hides the installed open_clip; rename or remove that folder"
    ):
        compat.optimize_prompt(old.model, preprocess, args, "cpu", target_images=images[:1])


def test_a_folder_beside_the_script_is_what_the_star_import_gives(tmp_path):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("class tokenizer: _tokenizer = 'old'\ntokenize = len\n")
    code = (
        "from pez_fast.compat import *\nfrom pez_fast.compat.utilities import stock_tokenizer\n"
        "print(open_clip.__file__)\nassert stock_tokenizer() == ('old', len)\n"
    )
    (tmp_path / "script.py").write_text(code)
    root = str(Path(pez_fast.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "open_clip" / "__init__.py"


def test_load_clip_names_the_old_copy(monkeypatch, tmp_path):
    old = ModuleType("open_clip")
    old.SimpleTokenizer, old.__file__ = OldTokenizer, str(tmp_path / "open_clip" / "__init__.py")
    monkeypatch.setitem(sys.modules, "open_clip", old)
    with pytest.raises(ImportError, match="an old copy that hides the installed one; rename that folder"):
        pez_fast.load_clip("emoji")
