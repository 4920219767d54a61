"""Models: fed with a prompt's embeddings they give what the model gives for its ids, on every kind of text tower."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pez_fast
from pez_fast.models.clip import ClipEncoder
from pez_fast.models.text_tower import TextEncoder, why_not_truncatable

VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TOWERS = {  # name: (model_cfg, whether the context may be cut behind the end token)
    "clip": ({"text_cfg": TEXT}, True),
    "custom clip, eos pooling": (
        {"text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}, "custom_text": True},
        True,
    ),
    "custom clip, projection with bias": ({"text_cfg": {**TEXT, "proj_bias": True}, "custom_text": True}, True),
    "siglip": (
        {"text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}, "custom_text": True},
        False,
    ),
    "mobileclip": ({"text_cfg": {**TEXT, "no_causal_mask": True}, "custom_text": True}, False),
    "causal, last pooling": ({"text_cfg": {**TEXT, "pool_type": "last"}, "custom_text": True}, False),
    "coca": (
        {
            "text_cfg": {**TEXT, "context_length": 23, "embed_cls": True, "output_tokens": True},
            "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
            "multimodal_cfg": {"context_length": 23, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
            "custom_text": True,
        },
        False,
    ),
}


def save(folder, config, build):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = build().state_dict()
    save_file({k: v.clone().contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 32}}))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Each kind of tower, written to disk and loaded as a user would."""
    import open_clip

    loaded = {}
    for name, (changes, _) in TOWERS.items():
        config = {"embed_dim": 16, "vision_cfg": VISION, **changes}
        kind = (
            open_clip.CoCa
            if "multimodal_cfg" in config
            else open_clip.CustomTextCLIP
            if config.get("custom_text")
            else open_clip.CLIP
        )
        folder = tmp_path_factory.mktemp("tower")
        save(
            folder,
            config,
            lambda kind=kind, config=config: kind(**{k: v for k, v in config.items() if k != "custom_text"}),
        )
        loaded[name] = pez_fast.load_clip(f"local-dir:{folder}", device="cpu", dtype=torch.float64)
    return loaded


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A local-dir CLIP whose text tower and tokenizer come from transformers."""
    import open_clip
    from transformers import BertConfig, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "a",
        "of",
        "red",
        "cat",
        "dog",
        "##s",
        "house",
        "on",
        "blue",
    ]
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
    ).save_pretrained(folder)
    text = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "hf_model_pretrained": False,
        "context_length": 20,
    }
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text}
    save(folder, config, lambda: open_clip.CustomTextCLIP(**config))
    return pez_fast.load_clip(str(folder), device="cpu", dtype=torch.float64)


def prompts_and_ids(clip: ClipEncoder, encoder: TextEncoder, rows: int = 3):
    """Random prompts and the whole ids they make, put together by the tokenizer from their text."""
    table = clip.table()
    allowed = table.allowed.nonzero()[:, 0]
    ids = allowed[torch.randint(len(allowed), (rows, len(encoder.slots)), generator=torch.Generator().manual_seed(2))]
    texts = [f"a red {clip.vocabulary.decode(row.tolist())} house" for row in ids]
    return table.weight[ids], ids, clip.tokenizer(texts)


@pytest.mark.parametrize("name", TOWERS)
def test_embeddings_give_what_ids_give(towers, name):
    clip = towers[name]
    encoder = clip.text_encoder(5, prefix="a red", suffix="house")
    hard, ids, whole = prompts_and_ids(clip, encoder)
    assert encoder.truncated is TOWERS[name][1]
    assert torch.equal(whole[:, encoder.slots], ids)
    expected = F.normalize(clip.model.encode_text(whole), dim=-1)
    torch.testing.assert_close(encoder(hard), expected, rtol=0, atol=1e-12)


def test_embeddings_give_what_ids_give_on_a_transformers_tower(bert):
    encoder = bert.text_encoder(4, prefix="a red", suffix="house")
    hard, ids, whole = prompts_and_ids(bert, encoder)
    assert not encoder.truncated and torch.equal(whole[:, encoder.slots], ids)
    torch.testing.assert_close(encoder(hard), F.normalize(bert.model.encode_text(whole), dim=-1), rtol=0, atol=1e-12)
    assert 11 not in bert.vocabulary.stable() and {5, 8, 9} <= set(
        bert.vocabulary.stable()
    )  # "##s" joins the word before it


def test_a_transformers_tower_is_inverted(bert, images):
    result = pez_fast.invert(images[0], bert, prompt_len=3, steps=15)
    assert len(result.prompt.split()) == 3 and result.text_score == pytest.approx(result.ids_score, abs=1e-6)


@pytest.mark.parametrize("name", TOWERS)
def test_gradient_is_that_of_the_whole_context(towers, name):
    clip = towers[name]
    encoder = clip.text_encoder(4)
    hard, _, _ = prompts_and_ids(clip, clip.text_encoder(4, prefix="a red", suffix="house"))
    hard.requires_grad_()
    goal = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (ours,) = torch.autograd.grad((encoder(hard) @ goal).sum(), hard)
    (full,) = torch.autograd.grad((clip.text_encoder(4, truncate=False)(hard) @ goal).sum(), hard)
    torch.testing.assert_close(ours, full, rtol=1e-9, atol=1e-12)
    assert ours.abs().max() > 0


@pytest.mark.parametrize("name", [n for n, (_, cut) in TOWERS.items() if not cut])
def test_truncation_is_refused_where_it_is_not_exact(towers, name):
    assert why_not_truncatable(towers[name].model)
    with pytest.raises(ValueError, match="truncate=True would change the result of this model: it"):
        towers[name].text_encoder(4, truncate=True)


def test_truncation_is_decided_from_the_mask(towers):
    model = towers["clip"].model
    before = model.attn_mask
    try:
        model.attn_mask = before.clone().fill_diagonal_(0).masked_fill(before == 0, 0)
        assert why_not_truncatable(model) is None
        model.attn_mask = before.clone()
        model.attn_mask[0, 5] = 0
        assert "mask" in str(why_not_truncatable(model))
    finally:
        model.attn_mask = before


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("prompt_len", [1, 6, 16])
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_the_batch(tiny_clip, tiny_clip64, rows, prompt_len, truncate, dtype):
    encoder = (tiny_clip if dtype == torch.float32 else tiny_clip64).text_encoder(prompt_len, truncate=truncate)
    hard = torch.randn(9, prompt_len, 32, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=True)
    few = hard[:rows].detach().requires_grad_()
    together, alone = encoder(hard), encoder(few)
    assert torch.equal(together[:rows], alone)
    for out in (together, alone):
        out[:, :3].sum().backward()
    assert torch.equal(hard.grad[:rows], few.grad)


def test_images_and_texts_do_not_depend_on_the_batch(tiny_clip, images):
    together = tiny_clip.encode_images(images)
    assert all(torch.equal(together[k], tiny_clip.encode_images([p])[0]) for k, p in enumerate(images))
    texts = ["a", "a red cat", "many words in a row here"]
    assert torch.equal(tiny_clip.encode_texts(texts)[1], tiny_clip.encode_texts(texts[1:2])[0])
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(8))


def test_stable_vocabulary_has_no_special_tokens_and_the_known_size(tiny_clip):
    stable = tiny_clip.vocabulary.stable()
    assert len(stable) == 34277 and stable == sorted(stable)
    assert (
        not tiny_clip.table().allowed[[49406, 49407]].any()
        and not tiny_clip.table("full").allowed[[49406, 49407]].any()
    )
    assert int(tiny_clip.table("full").allowed.sum()) == 49406


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_prompts_of_the_default_vocabulary_survive_the_round_trip(tiny_clip, data):
    stable = tiny_clip.vocabulary.stable()
    ids = data.draw(st.lists(st.sampled_from(stable), min_size=1, max_size=60))
    text = tiny_clip.vocabulary.decode(ids)
    assert tiny_clip.vocabulary.encode(text) == ids
    assert tiny_clip.tokenizer([text])[0, 1 : len(ids) + 1].tolist() == ids


def test_known_ids_narrow_the_stable_vocabulary(tiny_clip):
    known = tiny_clip.vocabulary.encode("red cat boat") + [320, 49407, 5]
    clip = ClipEncoder(tiny_clip.model, tiny_clip.tokenizer, tiny_clip.preprocess, known_ids=known)
    assert set(clip.vocabulary.stable()) == set(known) - {49407, 5}


def test_banned_words_and_ids(tiny_clip):
    table = tiny_clip.table("stable", ("Cat", 320))
    texts = [tiny_clip.vocabulary.decode([i]).lower() for i in table.allowed.nonzero()[:, 0].tolist()]
    assert not any("cat" in t for t in texts) and "dog" in texts and not table.allowed[320]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda c: c.table("half"),
            "vocabulary must be one of stable, words, full, a list of words or a file of them; 'half' cannot be read",
        ),
        (lambda c: c.table("stable", [99999]), "banned holds the id 99999"),
        (lambda c: c.table("stable", [" "]), "banned holds an empty word"),
        (lambda c: c.table("stable", "cat"), "banned must be a list"),
        (lambda c: c.table("stable", list(range(49408))), "banned leaves no token"),
        (lambda c: c.text_encoder(0), "prompt_len must be a positive integer; got 0"),
        (
            lambda c: c.text_encoder(76),
            "prompt_len must be at most 75: the context has 77 places and 2 are taken; got 76",
        ),
        (lambda c: c.text_encoder(74, prefix="a red"), "prompt_len must be at most 73"),
        (
            lambda c: c.text_encoder(4, prefix="red " * 80),
            "prefix and suffix must leave room for the prompt: with the special tokens they take 82 of the",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(tiny_clip, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(tiny_clip)


def test_a_banned_word_that_no_token_holds_is_said(tiny_clip):
    with pytest.warns(UserWarning, match="banned holds 'zzyzxq', which no token of the stable vocabulary holds"):
        table = tiny_clip.table("stable", ("zzyzxq", "cat"))
    assert not table.allowed[tiny_clip.vocabulary.encode("cat")].any()
