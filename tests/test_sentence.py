"""Sentence encoders: fed with a prompt's embeddings they give what the library gives for its text."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import pez_fast

pytest.importorskip("sentence_transformers")
from sentences import (  # noqa: E402, F401
    DTYPES,
    MODELS,
    TEXTS,
    TOLERANCE,
    bert,
    folders,
    library,
    load,
    save,
    some_ids,
    wordpiece,
)


@pytest.mark.parametrize("name", MODELS)
@DTYPES
@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("a red", "house"), ("The cat,", "!")])
def test_embeddings_give_what_the_text_gives(load, name, dtype, prefix, suffix):
    encoder = load(name, dtype)
    bound, ids = encoder.bind(5, prefix, suffix), some_ids(encoder, 6, 5)
    found = bound(encoder.table().weight[ids], ids)["features"]
    texts = [bound.text(row) for row in ids.tolist()]
    assert all(text.strip().startswith(prefix) and text.endswith(suffix) for text in texts)
    for other in (bound.from_text(texts)["features"], library(encoder, texts)):
        torch.testing.assert_close(found, other, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6, dtype=dtype))
    assert found.dtype == dtype and (found[0] - found[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
@DTYPES
def test_texts_are_encoded_as_the_library_does(load, name, dtype):
    encoder = load(name, dtype)
    together = encoder.encode_texts(TEXTS)
    torch.testing.assert_close(together, library(encoder, TEXTS), rtol=0, atol=TOLERANCE[dtype])
    many = encoder.encode_texts([*TEXTS, "a cat", *TEXTS[::-1], "the dog", "a dog", "of cats"])
    for k, text in enumerate(TEXTS):
        assert torch.equal(encoder.encode_texts([text])[0], together[k]) and torch.equal(many[k], together[k])
        assert torch.equal(many[8 - k], together[k])


def over_the_whole_context(bound, length=48):
    """The same bound model over padding up to its context, masked as the library does."""
    padded, more = copy.copy(bound), length - bound.template["input_ids"].shape[1]
    fill = {"input_ids": bound.encoder.model.tokenizer.pad_token_id}
    padded.template = {
        name: F.pad(value, (0, more), value=fill.get(name, 0)) if isinstance(value, torch.Tensor) else value
        for name, value in bound.template.items()
    }
    return padded


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_the_whole_context(load, name):
    encoder = load(name, torch.float64)
    ids = some_ids(encoder, 3, 4)
    hard = encoder.table().weight[ids].clone().requires_grad_()
    bound = encoder.bind(4, "a red", "house")
    found, full = bound(hard, ids)["features"], over_the_whole_context(bound)(hard, ids)["features"]
    torch.testing.assert_close(found, full, rtol=0, atol=1e-12)
    goal = torch.randn(found.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (ours,), (whole,) = (torch.autograd.grad((out @ goal).sum(), hard) for out in (found, full))
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)
    assert (ours.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt_len", [1, 6, 16])
@DTYPES
def test_a_row_does_not_depend_on_the_batch(load, name, prompt_len, dtype):
    encoder = load(name, dtype)
    bound, ids = encoder.bind(prompt_len), some_ids(encoder, 17, prompt_len)
    hard = encoder.table().weight[ids].clone().requires_grad_()
    together = bound(hard, ids)["features"]
    together[:, :3].sum().backward()
    for rows in (1, 2, 3, 5, 7, 8, 13):
        few = hard[:rows].detach().requires_grad_()
        alone = bound(few, ids[:rows])["features"]
        alone[:, :3].sum().backward()
        assert torch.equal(together[:rows], alone) and torch.equal(hard.grad[:rows], few.grad)


def test_a_row_does_not_depend_on_the_batch_at_a_real_width(tmp_path):
    def wide(size):
        return bert(size, hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=1)

    encoder = pez_fast.load_sentence_encoder(save(tmp_path, wordpiece, wide, "mean", 256, True), device="cpu")
    for dtype in (torch.float32, torch.bfloat16):
        bound, ids = encoder.bind(14, dtype=dtype), some_ids(encoder, 17, 14)
        hard = encoder.table().weight[ids].clone().requires_grad_()
        together = bound(hard, ids)["features"]
        together[:, :3].sum().backward()
        for rows in (1, 3, 4, 8, 11):
            few = hard[:rows].detach().requires_grad_()
            alone = bound(few, ids[:rows])["features"]
            alone[:, :3].sum().backward()
            assert torch.equal(together[:rows], alone) and torch.equal(hard.grad[:rows], few.grad)


@pytest.mark.parametrize("name", ["bert, mean", "roberta, last token", "qwen, last token, normalize"])
def test_another_dtype_is_a_copy(load, name):
    encoder = load(name)
    bound, ids = encoder.bind(4, dtype=torch.bfloat16), some_ids(encoder, 3, 4)
    assert bound.part is not encoder.model and encoder.dtype == torch.float32
    assert bound.part is encoder.bind(5, dtype=torch.bfloat16).part
    assert {p.dtype for p in bound.part.parameters()} == {torch.bfloat16}
    hard = encoder.table().weight[ids]
    found, exact = bound(hard, ids)["features"], encoder.bind(4)(hard, ids)["features"]
    assert found.dtype == torch.float32 and 0 < (found - exact).abs().max() < 0.05
    assert all(b.dtype == torch.float32 for n, b in bound.part.named_buffers() if n.endswith("inv_freq"))


@pytest.mark.parametrize("name", ["bert, mean", "xlm-roberta, mean, normalize", "roberta, last token"])
def test_distill_moves_the_way_the_signs_say(load, name):
    encoder, texts = load(name), [TEXTS[3], "red dogs of the house"]
    options = {"prompt_len": 4, "steps": 60, "restarts": 2, "seed": 3}
    near = {sign: pez_fast.distill(texts, encoder, weights=[sign, -sign], **options) for sign in (1, -1)}
    first, second = encoder.encode_texts(texts)
    for sign, result in near.items():
        (found,) = encoder.encode_texts([result.prompt])
        assert float(found @ (first - second)) * sign > 0.1
        assert result.text_score == pytest.approx(float(found @ (first - second)) * sign / 2, abs=1e-6)
        assert result.ids_score == pytest.approx(result.text_score, abs=1e-5)
        assert encoder.vocabulary.encode(result.prompt) == result.ids


def test_distill_shortens_one_text_and_several(load):
    encoder = load("bert, cls, dense, normalize")
    one = pez_fast.distill(TEXTS[3], encoder, ratio=0.4, steps=40)
    assert len(one.ids) == round(0.4 * len(encoder.vocabulary.encode(TEXTS[3]))) and one.text_score > 0.5
    several = pez_fast.distill(TEXTS, encoder, ratio=0.4, steps=40, weights=[1, 1, -0.5, 0.5], prefix="a red", refine=4)
    assert several.prompt.startswith("a red ") and several.ids_score == pytest.approx(several.text_score, abs=1e-5)
    with pytest.warns(UserWarning, match="the model reads the first 46 of the"):
        pez_fast.distill("the cat of the house " * 20, encoder, prompt_len=3, steps=1)
