"""Tiny sentence encoders of several families, saved as the library saves them, for the tests that need one."""

from __future__ import annotations

import pytest
import torch

import pez_fast

pytest.importorskip("sentence_transformers")
from vocabularies import byte_level, gemma, unigram, wordpiece  # noqa: E402

TEXTS = ["the cat of the house", "a red dog", "do not", "the cat of a blue house and the red dogs, not a cat"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(size, **sizes):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=size, max_position_embeddings=48, **{**SIZE, **sizes}))


def roberta(kind):
    def build(size):
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vocab_size=size, max_position_embeddings=50, type_vocab_size=1, **SIZE
        )
        return getattr(transformers, f"{kind}Model")(config)

    return build


def t5(size):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=1)
    )


def qwen(size):
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(vocab_size=size, max_position_embeddings=48, head_dim=16, num_key_value_heads=2, **SIZE)
    )


MODELS = {  # name: (tokenizer, transformer, pooling, width of a Dense module, Normalize)
    "bert, mean": (wordpiece, bert, "mean", None, False),
    "bert, cls, dense, normalize": (wordpiece, bert, "cls", 24, True),
    "bert, max, normalize": (wordpiece, bert, "max", None, True),
    "bert, mean, dense": (wordpiece, bert, "mean", 24, False),
    "xlm-roberta, mean, normalize": (unigram, roberta("XLMRoberta"), "mean", None, True),
    "roberta, last token": (byte_level, roberta("Roberta"), "lasttoken", None, False),
    "t5, mean, dense, normalize": (lambda: unigram(""), t5, "mean", 24, True),
    "qwen, last token, normalize": (gemma, qwen, "lasttoken", None, True),
}


def save(folder, tokenizer, transformer, pooling, dense, normalize, **more):
    """A model of the library with random weights, written to a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    tokenizer = tokenizer()
    model = transformer(len(tokenizer))
    with torch.no_grad():  # spread out, so that prompts differ from one another as much as a trained model's
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(0.25 * torch.randn(weight.shape))
        model.get_input_embeddings().weight.mul_(4)
    tokenizer.save_pretrained(folder / "parts")
    model.save_pretrained(folder / "parts")
    modules = [Transformer(str(folder / "parts"))]
    width = modules[0].get_embedding_dimension()
    modules.append(Pooling(width, pooling))
    modules += [Dense(width, dense)] if dense else []
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, device="cpu", **more).save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp("sentence"), *parts) for name, parts in MODELS.items()}


@pytest.fixture(scope="module")
def load(folders):
    """A model by name and dtype, read from its folder once."""
    loaded = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = pez_fast.load_sentence_encoder(folders[name], device="cpu", dtype=dtype)
        return loaded[name, dtype]

    return get


def some_ids(encoder, rows, length, seed=2):
    stable = torch.tensor(encoder.vocabulary.stable())
    return stable[torch.randint(len(stable), (rows, length), generator=torch.Generator().manual_seed(seed))]


def library(encoder, texts):
    """What the library itself gives for texts, padded to the longest."""
    return encoder.model.encode(list(texts), convert_to_tensor=True, normalize_embeddings=True).clone()
