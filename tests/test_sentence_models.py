"""Sentence encoders of every make: their own prompts and settings, what is refused, and how they are loaded."""

from __future__ import annotations

import builtins
import copy
import re

import pytest
import torch
from inputs import refused

import pez_fast
from pez_fast._shared.installation import install_hint
from pez_fast.models import SentenceEncoder

pytest.importorskip("sentence_transformers")
from sentences import MODELS, TEXTS, folders, library, load, save, some_ids, wordpiece  # noqa: E402, F401


def test_the_models_own_prompt_is_put_before_every_text(tmp_path):
    parts = MODELS["bert, mean"]
    prompts = {"prompts": {"find": "the blue dog: ", "none": ""}, "default_prompt_name": "find"}
    prompted = pez_fast.load_sentence_encoder(save(tmp_path, *parts, **prompts), "cpu", torch.float64)
    plain = SentenceEncoder(copy.deepcopy(prompted.model))
    plain.model.default_prompt_name, plain.prompt = None, ""
    bound, ids = prompted.bind(4, "a"), some_ids(prompted, 3, 4)
    texts = [bound.text(row) for row in ids.tolist()]
    found = bound(prompted.table().weight[ids], ids)["features"]
    assert all(text.startswith("a ") for text in texts)
    for other in (
        prompted.encode_texts(texts),
        library(prompted, texts),
        plain.encode_texts([f"the blue dog: {text}" for text in texts]),
    ):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
    assert (found - plain.encode_texts(texts)).abs().max() > 0.01
    assert prompted.fingerprint() != plain.fingerprint()
    own = len(prompted.vocabulary.encode("the blue dog: "))
    with refused(ValueError, f"prompt_len must be at most {46 - own}: the context has 48 places and {2 + own} are"):
        prompted.bind(48)


def test_prompts_left_out_of_the_pooling_are_left_out(tmp_path):
    prompts = {"prompts": {"find": "the blue dog: "}, "default_prompt_name": "find"}
    encoder = pez_fast.load_sentence_encoder(save(tmp_path, *MODELS["bert, mean"], **prompts), "cpu", torch.float64)
    bound, ids = encoder.bind(4), some_ids(encoder, 3, 4)
    before = bound(encoder.table().weight[ids], ids)["features"]
    encoder.model.set_pooling_include_prompt(False)
    bound = encoder.bind(4)
    found, texts = bound(encoder.table().weight[ids], ids)["features"], [bound.text(row) for row in ids.tolist()]
    torch.testing.assert_close(found, library(encoder, texts), rtol=0, atol=1e-12)
    assert (found - before).abs().max() > 0.01


def test_features_are_cut_as_the_model_says(load):
    encoder = SentenceEncoder(copy.deepcopy(load("bert, mean", torch.float64).model))
    encoder.model.truncate_dim = 8
    ids = some_ids(encoder, 2, 3)
    bound = encoder.bind(3)
    found = bound(encoder.table().weight[ids], ids)["features"]
    assert found.shape == (2, 8)
    torch.testing.assert_close(found, library(encoder, map(bound.text, ids.tolist())), rtol=0, atol=1e-12)


def test_the_fingerprint_is_of_what_decides(folders):
    def load(name="bert, mean", dtype=torch.float32):
        return pez_fast.load_sentence_encoder(folders[name], "cpu", dtype)

    encoder, first = load(), load().fingerprint()
    assert encoder.fingerprint() == first == SentenceEncoder(encoder.model, "another name").fingerprint()
    encoder.encode_texts(TEXTS)
    encoder.model.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=9)
    assert encoder.fingerprint() == first  # padding and truncation of the last call are no part of it
    assert all(isinstance(value, str) for value in first.values())
    for other in (load(dtype=torch.float64), load("bert, mean, dense"), load("bert, max, normalize")):
        assert other.fingerprint() != first
    with torch.no_grad():
        encoder.embedding.weight[7, 0] += 1
    changed = encoder.fingerprint()
    assert {name for name in first if changed[name] != first[name]} == {"model's weights"}
    shorter = load()
    shorter.model.max_seq_length = 20
    assert shorter.fingerprint() != first and shorter.context_length == 20


def test_parts_that_do_what_the_library_does(load):
    """A model that is no SentenceTransformer: a module with a tokenizer and `tokenize`."""
    whole = load("bert, mean", torch.float64).model

    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.tokenizer, self.max_seq_length = whole, whole.tokenizer, 40

        def tokenize(self, texts):
            return dict(self.tokenizer(texts, return_tensors="pt"))

        def forward(self, features):
            return self.inner(features)

    encoder = SentenceEncoder(Parts())
    ids, bound = some_ids(encoder, 2, 3), encoder.bind(3)
    found = bound(encoder.table().weight[ids], ids)["features"]
    assert (
        encoder.context_length == 40 and encoder.name == "custom" and repr(encoder).startswith("SentenceEncoder('cus")
    )
    torch.testing.assert_close(found, encoder.encode_texts([bound.text(i) for i in ids.tolist()]), rtol=0, atol=1e-12)


def test_a_model_that_looks_at_ids_is_refused(load):
    model = copy.deepcopy(load("bert, mean").model)
    inner, forward = model[0], model[0].forward
    ids_too = torch.nn.Embedding(len(model.tokenizer), 32)

    def with_ids(features, **more):
        features = forward(features, **more)
        features["token_embeddings"] = features["token_embeddings"] + ids_too(features["input_ids"])
        return features

    inner.forward = with_ids
    with refused(ValueError, "model looks at ids beside their embeddings"):
        SentenceEncoder(model).bind(3)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda e: e.bind(0), ValueError, "prompt_len must be a positive integer; got 0"),
        (lambda e: e.bind(47), ValueError, "prompt_len must be at most 46: the context has 48 places and 2"),
        (lambda e: e.bind(45, "a red", "house"), ValueError, "prompt_len must be at most 43"),
        (lambda e: e.table("half"), ValueError, "a list of words or a file of them; 'half' cannot be read"),
        (lambda e: pez_fast.invert("cat.png", e), TypeError, "model must .* have encode_images; got SentenceEncoder"),
        (lambda e: pez_fast.invert_batch(["cat.png"], e), TypeError, "encode_pixels, preprocess; got SentenceEncoder"),
        (lambda e: SentenceEncoder(torch.nn.Linear(2, 2)), TypeError, "have tokenizer, preprocess; got Linear"),
        (lambda e: pez_fast.load_sentence_encoder("/no/folder"), ValueError, "name='/no/folder' could not be"),
        (lambda e: pez_fast.load_sentence_encoder("nobody/nothing"), ValueError, "name='nobody/nothing' could not be"),
    ],
)  # fmt: skip
def test_refusals_are_one_sentence(load, call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call(load("bert, mean"))
    assert "\n" not in str(caught.value)


def test_the_longest_prompt_fits(load):
    encoder = load("roberta, last token")
    assert encoder.bind(46).template["input_ids"].shape == (1, 48)


def test_models_that_cannot_be_fed_are_refused(tmp_path, load):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(wordpiece().backend_tokenizer, embedding_dim=8)
    with refused(ValueError, "model has no token embedding that can be fed: it begins with StaticEmbedding"):
        SentenceEncoder(SentenceTransformer(modules=[static], device="cpu"))
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    with refused(ValueError, f"name={str(tmp_path)!r} cannot be used: model has no token embedding"):
        pez_fast.load_sentence_encoder(str(tmp_path))
    router = Router.for_query_document(query_modules=[static], document_modules=[load("bert, mean").model[0]])
    with refused(ValueError, "model has several routes"):
        SentenceEncoder(SentenceTransformer(modules=[router], device="cpu"))


def test_a_folder_without_a_model_says_so(tmp_path):
    with refused(ValueError, f"name={str(tmp_path)!r} holds no modules.json"):
        pez_fast.load_sentence_encoder(str(tmp_path))
    (tmp_path / "modules.json").write_text("no json")
    with refused(ValueError, f"name={str(tmp_path)!r} could not be downloaded or read"):
        pez_fast.load_sentence_encoder(str(tmp_path))


def test_a_missing_package_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "sentence_transformers":
            raise ModuleNotFoundError("No module named 'sentence_transformers'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape(install_hint("sentence"))):
        pez_fast.load_sentence_encoder("any")


def test_loading_prints_nothing(folders, capfd):
    pez_fast.load_sentence_encoder(folders["bert, mean"], device="cpu")
    assert capfd.readouterr() == ("", "")
