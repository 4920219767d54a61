"""Tiny language models of several families with tokenizers built here, and what they give when run plainly."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from vocabularies import byte_level, corpus, fast, gemma, trained, unigram, wordpiece  # noqa: E402, F401

from pez_fast.labelled import Template  # noqa: E402
from pez_fast.models.language import Examples, LabelModel, LabelTask, LanguageModel  # noqa: E402

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONTEXT = 64
SENTENCES = (
    "the cat of the house",
    "a red dog",
    "",
    "do not, we're a cat! 12 é",
    "the red dogs and the blue house, it's",
)
ROWS = [{"text": text, "other": f"a {k}", "label": k % 2} for k, text in enumerate(SENTENCES)]
CLASSES = [row["label"] for row in ROWS]


def gpt2_tokens(added=False):
    """Byte-level BPE without special tokens round a text, and without padding; `added`: with tokens added to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    found = fast(trained(tokenizer, trainer), **names)
    if added:
        found.add_tokens([AddedToken("covid", normalized=False), "blue house", AddedToken("xyz", lstrip=True)])
        found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


def llama_tokens():
    """Pieces by likelihood with a first special token and no last one."""
    tokenizer = unigram()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def t5_tokens():
    tokenizer = unigram("")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]})
    return tokenizer


def gpt2(size):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2))


def causal(kind, extra=0, classes=None, **settings):
    """A builder of `kind`'s causal model, with so many rows of the table more than there are tokens."""

    def build(size):
        import transformers

        config, model = classes or (f"{kind}Config", f"{kind}ForCausalLM")
        sizes = {**SIZE, "max_position_embeddings": CONTEXT, "pad_token_id": None, **settings}
        return getattr(transformers, model)(getattr(transformers, config)(vocab_size=size + extra, **sizes))

    return build


def t5(size, **settings):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    special = {"pad_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=size, **sizes, **special, **settings))


_GEMMA = {"head_dim": 16, "num_key_value_heads": 1, "query_pre_attn_scalar": 16, "sliding_window": 6}
MODELS = {  # name: (tokenizer, model)
    "gpt2": (gpt2_tokens, gpt2),
    "opt": (byte_level, causal("OPT", ffn_dim=64, word_embed_proj_dim=32)),
    "opt, narrow table": (byte_level, causal("OPT", ffn_dim=64, word_embed_proj_dim=16)),
    "llama": (llama_tokens, causal("Llama", num_key_value_heads=1, tie_word_embeddings=False)),
    "gemma": (gemma, causal("Gemma", head_dim=16, num_key_value_heads=1)),
    "gemma2": (gemma, causal("Gemma2", **_GEMMA)),
    "gemma3": (gemma, causal("Gemma3", classes=("Gemma3TextConfig", "Gemma3ForCausalLM"), **_GEMMA)),
    "qwen2, padded table": (lambda: gpt2_tokens(True), causal("Qwen2", 37, num_key_value_heads=2)),
    "bert's tokens": (wordpiece, causal("Llama", num_key_value_heads=2, tie_word_embeddings=True)),
    "t5, tied": (t5_tokens, lambda size: t5(size + 20)),
    "t5, gated": (t5_tokens, lambda size: t5(size + 20, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
}
SEQ2SEQ = [name for name in MODELS if name.startswith("t5")]
CAUSAL = [name for name in MODELS if name not in SEQ2SEQ]


def build(name, dtype=torch.float32):
    """A new model by name, with random weights that are spread out, so that prompts differ as a trained model's do."""
    tokens, model = MODELS[name]
    torch.manual_seed(0)
    tokenizer = tokens()
    network = model(len(tokenizer))
    with torch.no_grad():
        for path, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.copy_((0.1 if path == "lm_head.weight" else 0.2) * torch.randn(weight.shape))
        network.get_input_embeddings().weight.mul_(3 if model is gpt2 else 2)
    return LanguageModel(network.to(dtype), tokenizer, name)


@cache
def language(name, dtype=torch.float32):
    """The same model for all tests, which must not change it."""
    return build(name, dtype)


def some_ids(lm, rows, length, seed=2):
    stable = torch.tensor(lm.vocabulary.stable())
    return stable[torch.randint(len(stable), (rows, length), generator=torch.Generator().manual_seed(seed))]


def embedded(lm, ids, dtype=None):
    return lm.table().weight[ids].to(dtype or lm.dtype)


def label_model(lm, template, words, rows=ROWS, **settings):
    examples = Examples(rows, [row["label"] for row in rows])
    return LabelModel(lm, LabelTask(Template.parse(template), words, examples, examples, **settings))


def in_text(lm, whole, ids):
    """Where the ids of a prompt stand in the ids of a text."""
    places = [k for k in range(len(whole)) if whole[k : k + len(ids)] == ids]
    assert len(places) == 1, "the prompt must be in its text once"
    return places[0]


def read(lm, text):
    """The ids of a text with the tokenizer's own special tokens; those behind it are for an encoder alone."""
    ids = lm.tokenizer(text)["input_ids"]
    closes = {lm.tokenizer.sep_token_id, lm.tokenizer.eos_token_id} - {None, lm.tokenizer.bos_token_id}
    return ids[:-1] if not lm.is_encoder_decoder and ids and ids[-1] in closes else ids


def plain_logp(lm, whole, label, learned=(), embeds=None):
    """log p of a label's ids behind a text's, in full, with a prompt's embeddings in place of its ids."""
    table, device = lm.model.get_input_embeddings(), lm.device
    text = table(torch.tensor(whole, dtype=torch.int64, device=device)).detach()
    if embeds is not None:
        at = in_text(lm, whole, list(learned))
        text = torch.cat([text[:at], embeds, text[at + len(learned) :]])
    if lm.is_encoder_decoder:
        decoder = torch.tensor([[lm.model.config.decoder_start_token_id, *label[:-1]]], device=device)
        logits = lm.model(inputs_embeds=text[None], decoder_input_ids=decoder).logits[0]
    else:
        text = torch.cat([text, table(torch.tensor(label[:-1], dtype=torch.int64, device=device)).detach()])
        logits = lm.model(inputs_embeds=text[None], use_cache=False).logits[0, len(text) - len(label) :]
    return logits.log_softmax(-1)[range(len(label)), label].sum()


def label_tokens(lm, template, prompt, row, word):
    if lm.is_encoder_decoder:
        return lm.tokenizer(template.label_lead + word, add_special_tokens=False)["input_ids"]
    bare, whole = read(lm, template.render(prompt, row)), read(lm, template.render(prompt, row, word))
    assert whole[: len(bare)] == bare
    return whole[len(bare) :]


def plain_scores(lm, template, words, rows, prompt, learned=(), embeds=None, calibrate=False):
    """log p of each word behind each row (B, C): example by example, and without a cache or padding."""
    template = Template.parse(template)

    def scores(row):
        whole = read(lm, template.render(prompt, row))
        labels = [label_tokens(lm, template, prompt, row, word) for word in words]
        return torch.stack([plain_logp(lm, whole, label, learned, embeds) for label in labels])

    found = torch.stack([scores(row) for row in rows]).log_softmax(-1) if calibrate else None
    if found is None:
        return torch.stack([scores(row) for row in rows])
    return found - scores(dict.fromkeys(template.columns, "")).log_softmax(-1)


def plain_nll(lm, ids, embeds):
    """The mean cross-entropy of a prompt's tokens from the second on."""
    head = [i for i in read(lm, "") if i in lm.vocabulary.special]
    start = lm.model.get_input_embeddings()(torch.tensor(head, dtype=torch.int64)).detach()
    logits = lm.model(inputs_embeds=torch.cat([start, embeds])[None], use_cache=False).logits[0, len(head) : -1]
    return F.cross_entropy(logits, torch.as_tensor(ids)[1:])
