"""CLIP-like models of transformers: fed with a prompt's embeddings they give what the library gives for its text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from towers import CONTEXT, MODELS, TEXTS, built, save

import pez_fast
from pez_fast.images import load_image
from pez_fast.models import HFClipEncoder

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
EACH = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp("tower"), name) for name in MODELS}


@pytest.fixture(scope="module")
def load(folders):
    """A model by name and dtype, read from its folder once."""
    loaded = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = pez_fast.load_clip(folders[name], device="cpu", dtype=dtype)
        return loaded[name, dtype]

    return get


def some_ids(clip, rows, length):
    stable = torch.tensor(clip.vocabulary.stable())
    return stable[torch.randint(len(stable), (rows, length), generator=torch.Generator().manual_seed(2))]


def features_of(found):
    return F.normalize(getattr(found, "pooler_output", found), dim=-1)


@torch.no_grad()
def texts_by_library(name, texts, dtype=torch.float32):
    """What the library itself gives for texts, padded to the context as the towers were trained."""
    model, tokenizer, _, _ = built(name)
    read = tokenizer(list(texts), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    model = model.to(dtype)
    return features_of(model(**read).text_embeds if name == "clip, text" else model.get_text_features(**read))


@torch.no_grad()
def images_by_library(name, images):
    """What the library itself gives for images, from its own image processor."""
    model, _, processor, vision = built(name)
    read = processor(images=[load_image(image) for image in images], return_tensors="pt")
    return features_of(vision(**read).image_embeds if vision is not None else model.get_image_features(**read))


@EACH
@DTYPES
@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("a red", "house"), ("The cat,", "!")])
def test_embeddings_give_what_the_library_gives_for_the_text(load, name, dtype, prefix, suffix):
    clip = load(name, dtype)
    bound, ids = clip.bind(5, prefix, suffix), some_ids(clip, 6, 5)
    found = bound(clip.table().weight[ids], ids)["features"]
    texts = [bound.text(row) for row in ids.tolist()]
    assert all(text.strip().startswith(prefix) and text.endswith(suffix) for text in texts)
    for other in (bound.from_text(texts)["features"], texts_by_library(name, texts, dtype)):
        torch.testing.assert_close(found, other, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6, dtype=dtype))
    assert found.dtype == dtype and (found[0] - found[1]).abs().max() > 0.01


@EACH
def test_texts_and_images_are_encoded_as_the_library_does(load, name, images):
    clip, pictures = load(name), [*images, images[0].convert("L"), images[1].resize((90, 20)), Image.new("RGB", (1, 5))]
    texts, found = clip.encode_texts(TEXTS), clip.encode_images(pictures)
    torch.testing.assert_close(texts, texts_by_library(name, TEXTS), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, images_by_library(name, pictures), rtol=0, atol=1e-5)
    expected = images_by_library(name, pictures) @ texts_by_library(name, TEXTS).T
    torch.testing.assert_close(pez_fast.score(pictures, TEXTS, clip), expected, rtol=0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01 and (texts[0] - texts[1]).abs().max() > 0.01
    for k in range(len(TEXTS)):
        assert torch.equal(clip.encode_texts(TEXTS[k : k + 1])[0], texts[k])
    assert torch.equal(clip.encode_images(pictures[3:4])[0], found[3])


@EACH
def test_the_longest_text_is_cut_as_the_library_cuts_it(load, name):
    clip = load(name)
    room = CONTEXT - len(clip.tokenizer("")["input_ids"])
    longest = clip.bind(room - len(clip.vocabulary.encode(clip.vocabulary.lead)) * bool(clip.vocabulary.lead.strip()))
    ids = some_ids(clip, 2, len(longest.encoder.slots))
    found = longest(clip.table().weight[ids], ids)["features"]
    texts = [longest.text(row) for row in ids.tolist()]
    torch.testing.assert_close(found, texts_by_library(name, texts), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=f"prompt_len must be at most {len(ids[0])}: the context has {CONTEXT} places"):
        clip.bind(room + 1)


@EACH
def test_the_gradient_is_that_of_a_plain_loop(load, name):
    """The loop: the library's model over the whole context, with a table of embeddings that holds the prompt's own."""
    clip = load(name, torch.float64)
    ids = some_ids(clip, 3, 4)
    hard = clip.table().weight[ids].clone().requires_grad_()
    bound, model = clip.bind(4, "a red", "house"), built(name)[0].double().requires_grad_(False)
    goal = torch.randn(16 if "clip" in name else 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (ours,) = torch.autograd.grad((bound(hard, ids)["features"] @ goal).sum(), hard)
    table = model.text_model.embeddings.token_embedding
    for row, gradient in zip(ids.tolist(), ours, strict=True):
        read = clip.tokenizer(
            bound.text(row), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        whole = table.weight[read["input_ids"]].clone().requires_grad_()

        class Given(torch.nn.Module):
            def forward(self, ids, given=whole):
                return given

        model.text_model.embeddings.token_embedding = Given()
        found = model(**read).text_embeds if name == "clip, text" else model.get_text_features(**read)
        (full,) = torch.autograd.grad((features_of(found) @ goal).sum(), whole)
        at = next(k for k in range(CONTEXT) if read["input_ids"][0, k : k + 4].tolist() == row)
        torch.testing.assert_close(gradient, full[0, at : at + 4], rtol=1e-9, atol=1e-12)
        assert (gradient.abs().amax(-1) > 0).all()


@EACH
@DTYPES
@pytest.mark.parametrize("prompt_len", [1, 6])
def test_a_row_does_not_depend_on_the_batch(load, name, dtype, prompt_len):
    clip = load(name, dtype)
    bound, ids = clip.bind(prompt_len), some_ids(clip, 17, prompt_len)
    hard = clip.table().weight[ids].clone().requires_grad_()
    together = bound(hard, ids)["features"]
    together[:, :3].sum().backward()
    for rows in (1, 2, 5, 8, 13):
        few = hard[:rows].detach().requires_grad_()
        alone = bound(few, ids[:rows])["features"]
        alone[:, :3].sum().backward()
        assert torch.equal(together[:rows], alone) and torch.equal(hard.grad[:rows], few.grad)


@EACH
def test_learned_tokens_are_never_special_and_come_back(load, name):
    clip = load(name)
    special = set(clip.tokenizer.all_special_ids)
    for vocabulary in ("stable", "full"):
        allowed = set(clip.table(vocabulary).allowed.nonzero()[:, 0].tolist())
        assert allowed and not allowed & special
    lead = clip.vocabulary.encode(clip.vocabulary.lead) if clip.vocabulary.lead.strip() else []
    for row in some_ids(clip, 40, 7).tolist():
        assert clip.vocabulary.encode(clip.vocabulary.decode(row)) == lead + row


def test_what_would_be_pooled_in_place_of_the_end_is_not_learned():
    """An added token has a larger id than the end token's: where the largest is pooled, it would be that one."""
    for name, learned in (("clip", True), ("clip, largest id", False)):
        model, tokenizer, images, _ = built(name)
        tokenizer = type(tokenizer)(tokenizer.get_vocab(), tokenizer._merges, pad_token=tokenizer.pad_token)
        tokenizer.add_tokens(["zebra"])
        torch.manual_seed(1)
        model.text_model.set_input_embeddings(torch.nn.Embedding(len(tokenizer), 32))
        clip = HFClipEncoder(model, tokenizer, images)
        new = tokenizer.convert_tokens_to_ids("zebra")
        assert new == len(tokenizer) - 1 == tokenizer.eos_token_id + 1
        assert bool(clip.table().allowed[new]) is bool(clip.table("full").allowed[new]) is learned
        assert clip.context_length == CONTEXT  # the model's, where the tokenizer has none
        if not learned:
            with pytest.raises(
                ValueError, match="model pools the largest id, which its tokenizer does not write behind"
            ):
                clip.bind(3, "zebra")


@EACH
def test_another_dtype_is_a_copy_of_the_text_tower(load, name):
    clip = load(name)
    bound, ids = clip.bind(4, dtype=torch.bfloat16), some_ids(clip, 3, 4)
    part = bound.encoder.model
    assert part is not clip.model and part is clip.bind(5, dtype=torch.bfloat16).encoder.model
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16} and clip.dtype == torch.float32
    assert not any("vision_model" in parameter for parameter, _ in part.named_parameters())
    hard = clip.table().weight[ids]
    found, exact = bound(hard, ids)["features"], clip.bind(4)(hard, ids)["features"]
    assert found.dtype == torch.float32 and 0 < (found - exact).abs().max() < 0.1


def test_the_fingerprint_is_of_what_decides(load, folders):
    first = load("clip").fingerprint()
    again = pez_fast.load_clip(folders["clip"], device="cpu")
    again.encode_texts(TEXTS)  # padding and truncation of the last call are no part of it
    assert again.fingerprint() == first and all(isinstance(value, str) for value in first.values())
    for other in (*(load(name) for name in MODELS if name != "clip"), load("clip", torch.float64)):
        assert other.fingerprint() != first
    again.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert {name for name in first if again.fingerprint()[name] != first[name]} == {"preprocessing"}
    other = pez_fast.load_clip(folders["clip, text"], device="cpu")
    before = other.fingerprint()
    with torch.no_grad():
        next(other.vision.parameters()).view(-1)[0] += 1
    assert {name for name in before if other.fingerprint()[name] != before[name]} == {"model's weights"}
