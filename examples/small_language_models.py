"""The tokenizers and the untrained models of train_language_models.py: GPT-2, Llama and T5 of small size."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import review_text as world
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT, WIDTH, SENTINELS = 128, 128, 16
START = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def training_words() -> Iterator[str]:
    """Yields documents for the tokenizers, and each word often enough to become one token."""
    rng = random.Random(0)
    for _ in range(4000):
        document = world.make_document(rng)
        yield rng.choice(["", " "]) + document.head + " " + document.label + document.rest
    for _ in range(60):
        yield "".join(" " + w for w in world.WORDS)


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2431, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_words(), trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=CONTEXT
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a unigram tokenizer that marks spaces and puts a token in front, as SentencePiece's."""
    counts = Counter(w for text in training_words() for w in text.split())
    total = sum(counts.values())
    pieces = Counter(w[n : n + k] for w in world.WORDS for k in (2, 3) for n in range(len(w) - k + 1))
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocabulary += [("\u2581" + w, math.log(n / total)) for w, n in counts.most_common()]
    vocabulary += [(p, -10.0) for p, _ in pieces.most_common(200)]
    vocabulary += [(c, -14.0) for c in ["\u2581", *(chr(c) for c in range(33, 127))]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    front = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[front])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **START)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a WordPiece tokenizer that appends </s>, with the sentinels of T5."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=2400,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[chr(c) for c in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_words(), trainer)
    tokenizer.add_special_tokens([AddedToken(f"<extra_id_{n}>", special=True) for n in range(SENTINELS)])
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=[f"<extra_id_{n}>" for n in range(SENTINELS)],
        model_max_length=CONTEXT,
    )


TOKENIZERS = {"gpt2": gpt2_tokenizer, "llama": llama_tokenizer, "t5": t5_tokenizer}


def make_model(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Returns an untrained model."""
    size = len(tokenizer)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if name == "gpt2":
        drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": 4, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(vocab_size=size, **shape, **drop, **ends))
    size = -(-size // 64) * 64 if size % 64 else size + 64
    if name == "llama":
        shape = {"hidden_size": WIDTH, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                **shape,
                **ends,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=False,
                pad_token_id=None,
            )
        )
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=size,
            d_model=WIDTH,
            d_kv=32,
            d_ff=320,
            num_layers=4,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    for table in (model.shared, model.lm_head):  # their usual scale of 1 is far for steps of AdamW
        torch.nn.init.normal_(table.weight, std=0.05)
    return model


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Loads a folder as transformers does."""
    seq2seq = json.loads((folder / "config.json").read_text()).get("is_encoder_decoder", False)
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
