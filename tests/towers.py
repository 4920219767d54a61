"""Tiny CLIP-like models of transformers with random weights, saved as the library saves them."""

from __future__ import annotations

import json
from functools import cache

import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from vocabularies import fast, gemma, trained, unigram

CONTEXT = 24
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZE, "max_position_embeddings": CONTEXT}
VISION = {**SIZE, "image_size": 32, "patch_size": 8}
START, END = "<|startoftext|>", "<|endoftext|>"
TEXTS = ["the cat of the house", "a red dog", "not", "the cat of a blue house and the red dogs, not a cat " * 4]


@cache
def clip_tokenizer(pad=END):
    """CLIP's own tokenizer, trained on a few hundred words; its end token has the largest id, as CLIP's has."""
    from transformers import CLIPTokenizer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    learned = json.loads(trained(CLIPTokenizer().backend_tokenizer, trainer).to_str())["model"]
    vocab = ["!", *sorted(learned["vocab"].keys() - {"!", START, END}), START, END]
    merges = [tuple(pair) for pair in learned["merges"]]
    numbered = {token: i for i, token in enumerate(vocab)}
    return CLIPTokenizer(numbered, merges, pad_token=pad, model_max_length=CONTEXT)


@cache
def siglip_tokenizer(masked):
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>", "padding_side": "right"}
    inputs = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    return fast(Tokenizer.from_str(unigram("").backend_tokenizer.to_str()), model_input_names=inputs, **names)


@cache
def siglip2_tokenizer():
    """SigLIP 2's own tokenizer, which pads on the left and gives a mask."""
    from transformers import Siglip2Tokenizer

    state = json.loads(gemma().backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    return Siglip2Tokenizer({**state["vocab"], "<mask>": len(state["vocab"])}, merges, model_max_length=CONTEXT)


def clip(tokenizer, end):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": 1, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    return model, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), None


def clip_text(tokenizer, end):
    import transformers as library

    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": 1, "pad_token_id": 0}
    model = library.CLIPTextModelWithProjection(library.CLIPTextConfig(**text, projection_dim=16))
    vision = library.CLIPVisionModelWithProjection(library.CLIPVisionConfig(**VISION, projection_dim=16))
    return model, library.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), vision


def siglip(tokenizer, end):
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    text = {**TEXT, "vocab_size": len(tokenizer), "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    return model, SiglipImageProcessor(size={"height": 32, "width": 32}), None


def siglip2(tokenizer, end):
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    text = {**TEXT, "vocab_size": len(tokenizer), "projection_size": 32}
    vision = {**SIZE, "patch_size": 8, "num_patches": 16}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    return model, Siglip2ImageProcessor(patch_size=8, max_num_patches=16), None


MODELS = {  # name: (model, tokenizer, the end token of its configuration)
    "clip": (clip, clip_tokenizer, None),
    "clip, largest id": (clip, lambda: clip_tokenizer("!"), 2),
    "clip, text": (clip_text, clip_tokenizer, None),
    "siglip": (siglip, lambda: siglip_tokenizer(False), None),
    "siglip, masked": (siglip, lambda: siglip_tokenizer(True), None),
    "siglip2": (siglip2, siglip2_tokenizer, None),
}


def built(name):
    """Returns a model with random weights, its tokenizer, its image processor, and its vision model or None."""
    build, tokenizer, end = MODELS[name]
    tokenizer = tokenizer()
    torch.manual_seed(0)
    model, images, vision = build(tokenizer, tokenizer.eos_token_id if end is None else end)
    for part in filter(None, (model, vision)):
        with torch.no_grad():  # spread out, so that prompts differ from one another as much as a trained model's
            for weight in part.parameters():
                if weight.ndim > 1:
                    weight.copy_(0.25 * torch.randn(weight.shape))
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight.mul_(4)
    return model.eval(), tokenizer, images, None if vision is None else vision.eval()


def save(folder, name):
    """Writes a model into a folder as its user would; the path."""
    model, tokenizer, images, vision = built(name)
    for part in (model, tokenizer, images):
        part.save_pretrained(folder)
    if vision is not None:
        vision.save_pretrained(folder / "image_encoder")
    return str(folder)
