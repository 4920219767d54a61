"""`compat` against the plain port of the original loop."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from pez_fast import compat, reference

CONFIG = {
    "prompt_len": 5,
    "iter": 60,
    "lr": 0.1,
    "weight_decay": 0.1,
    "prompt_bs": 1,
    "loss_weight": 1.0,
    "print_step": None,
    "batch_size": 1,
    "clip_model": "tiny",
    "clip_pretrain": "none",
}


def plain_text(clip, targets, **changes) -> str:
    c = {**CONFIG, **changes}
    trace = reference.optimize_prompt(
        clip.model,
        targets,
        prompt_len=c["prompt_len"],
        steps=c["iter"],
        lr=c["lr"],
        weight_decay=c["weight_decay"],
        prompt_bs=c["prompt_bs"],
        batch_size=c["batch_size"],
        loss_weight=c["loss_weight"],
    )
    return clip.tokenizer.decode(trace.best_ids.tolist())


def features(clip, images):
    with torch.no_grad():
        return clip.model.encode_image(torch.stack([clip.preprocess(p) for p in images]).to(clip.dtype))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (1, {}),
        (1, {"prompt_bs": 4}),
        (4, {"batch_size": 2}),
        (3, {"batch_size": None, "prompt_bs": 4}),
        (2, {"loss_weight": -1.0}),
        (2, {"loss_weight": -0.5, "prompt_bs": 4}),
    ],
)
def test_same_text_as_the_original_for_images(tiny_clip64, images, seed, count, changes):
    clip = tiny_clip64
    compat.set_random_seed(seed)
    text = compat.optimize_prompt(
        clip.model, clip.preprocess, {**CONFIG, **changes}, "cpu", target_images=images[:count]
    )
    compat.set_random_seed(seed)
    assert text == plain_text(clip, features(clip, images[:count]), **changes)
    assert text


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("prompt_bs", [1, 4])
def test_same_text_as_the_original_for_texts(tiny_clip64, seed, prompt_bs):
    clip, texts = tiny_clip64, ["a photo of a cat", "an oil painting of a boat"]
    args = Namespace(**{**CONFIG, "prompt_bs": prompt_bs}, something_else=1)
    compat.set_random_seed(seed)
    text = compat.optimize_prompt(clip.model, clip.preprocess, args, "cpu", target_prompts=texts)
    compat.set_random_seed(seed)
    with torch.no_grad():
        targets = clip.model.encode_text(clip.tokenizer(texts))
    assert text == plain_text(clip, targets, prompt_bs=prompt_bs)


def test_same_text_in_float32(tiny_clip, images):
    compat.set_random_seed(3)
    text = compat.optimize_prompt(
        tiny_clip.model, tiny_clip.preprocess, {**CONFIG, "iter": 20}, "cpu", target_images=images[:1]
    )
    compat.set_random_seed(3)
    assert text == plain_text(tiny_clip, features(tiny_clip, images[:1]), iter=20)


def test_other_seeds_give_other_prompts(tiny_clip64, images):
    texts = set()
    for seed in range(3):
        compat.set_random_seed(seed)
        texts.add(
            compat.optimize_prompt(tiny_clip64.model, tiny_clip64.preprocess, CONFIG, "cpu", target_images=images[:1])
        )
    assert len(texts) == 3


def test_config_file_and_printing(tiny_clip, images, tmp_path, capsys):
    path = tmp_path / "sample_config.json"
    path.write_text(json.dumps({**CONFIG, "iter": 3, "print_step": 1}))
    compat.set_random_seed(0)
    text = compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, str(path), "cpu", target_images=images[:1])
    out = capsys.readouterr().out
    assert all(f"\n\nstep: {k}, lr: 0.1, cosim: " in f"\n{out}" for k in range(3))
    assert out.rstrip().endswith(f"best prompt: {text.rstrip()}")
    compat.set_random_seed(0)
    args = {**CONFIG, "iter": 3, "print_step": 2, "print_new_best": True}
    compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, args, "cpu", target_images=images[:1])
    assert f"new best prompt: {text}" in capsys.readouterr().out


def test_nn_project_is_the_original_projection(tiny_clip, capsys):
    layer = tiny_clip.model.token_embedding
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    embeds, ids = compat.nn_project(x, layer, print_hits=True)
    plain, plain_ids = reference.nn_project(x.detach(), layer.weight)
    assert torch.equal(ids, plain_ids) and torch.equal(embeds, plain) and not embeds.requires_grad
    assert capsys.readouterr().out.startswith("mean hits:0.")


def test_nn_project_sees_changed_weights():
    layer = torch.nn.Embedding(10, 4)
    x = layer.weight[3][None, None].detach().clone()
    assert compat.nn_project(x, layer)[1].item() == 3
    with torch.no_grad():
        layer.weight[3] = -layer.weight[3]
        layer.weight[7] = x[0, 0]
    assert compat.nn_project(x, layer)[1].item() == 7


def test_initialize_prompt_and_decode_ids(tiny_clip):
    tokenizer, layer = tiny_clip.tokenizer, tiny_clip.model.token_embedding
    torch.manual_seed(4)
    prompt, dummy, ids = compat.initialize_prompt(tokenizer, layer, Namespace(prompt_len=3, prompt_bs=2), "cpu")
    torch.manual_seed(4)
    assert torch.equal(prompt, layer.weight[torch.randint(49408, (2, 3))]) and prompt.requires_grad and prompt.is_leaf
    assert ids.tolist() == [[49406, -1, -1, -1, 49407] + [0] * 72] * 2
    assert dummy.shape == (2, 77, 32) and torch.equal(dummy[0, 4], layer.weight[49407]) and not dummy.requires_grad
    words = torch.tensor([tokenizer.encode("red cat")])
    assert compat.decode_ids(words, tokenizer) == ["red cat "]
    assert compat.decode_ids(words, tokenizer, by_token=True) == ["red |cat "]


def test_measure_similarity(tiny_clip, images):
    same = compat.measure_similarity(images[:1], images[:1], tiny_clip.model, tiny_clip.preprocess, "cpu")
    assert same == pytest.approx(1, abs=1e-5)
    mixed = compat.measure_similarity(images[:2], images[2:4], tiny_clip.model, tiny_clip.preprocess, "cpu")
    unit = [torch.nn.functional.normalize(features(tiny_clip, p), dim=1) for p in (images[:2], images[2:4])]
    assert mixed == pytest.approx(float((unit[0] @ unit[1].T).mean()), abs=1e-6) and mixed < same


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({**CONFIG, "itre": 3}, "unknown key 'itre'"),
        ({k: v for k, v in CONFIG.items() if k != "lr"}, "lacks the key 'lr'"),
        (Namespace(prompt_len=3), "lacks the key 'iter'"),
        ({**CONFIG, "iter": -1}, "args.iter must be an integer, not negative; got -1"),
        ({**CONFIG, "batch_size": 0}, "args.batch_size must be a positive integer or None; got 0"),
        ({**CONFIG, "prompt_len": 76}, "prompt_len must be from 1 to 75; got 76"),
    ],
)
def test_bad_configuration_is_one_sentence(tiny_clip, images, args, sentence):
    with pytest.raises(ValueError, match=sentence):
        compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, args, "cpu", target_images=images[:1])


def test_no_target_is_one_sentence(tiny_clip):
    with pytest.raises(ValueError, match="target_images or target_prompts must be given"):
        compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, CONFIG, "cpu")
    with pytest.raises(ValueError, match="at least one image"):
        compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, CONFIG, "cpu", target_images=[])


def test_download_image_takes_only_web_addresses(tmp_path):
    assert compat.download_image("file:///etc/hostname") is None


def test_the_model_is_left_as_it_was(tiny_clip_dir, images):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip_dir}")
    before = {name: p.clone() for name, p in model.named_parameters()}
    compat.optimize_prompt(model, preprocess, {**CONFIG, "iter": 2}, "cpu", target_images=images[:1])
    for name, p in model.named_parameters():
        assert p.requires_grad and p.grad is None and torch.equal(p, before[name])


def test_the_star_import_gives_what_the_original_gave():
    """Scripts took these names from it without importing them; none of the slow ones is imported by `import` itself."""
    code = (
        "import sys, pez_fast.compat\n"
        "assert not {'open_clip', 'requests', 'sentence_transformers'} & set(sys.modules)\n"
        "from pez_fast.compat import *\n"
        "assert mean([1, 3]) == 2 and np.pi and torch.ones(1) and copy.copy([1]) and json.dumps(1)\n"
        "assert random.random()\n"
        "assert Image.new and BytesIO(b'') and Any and Mapping and open_clip.create_model\n"
        "x = normalize_embeddings(torch.tensor([[3.0, 4.0]]))\n"
        "assert x.tolist() == [[0.6000000238418579, 0.800000011920929]] and dot_score(x, x).shape == (1, 1)\n"
        "assert callable(semantic_search)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_are_the_originals():
    compat.set_random_seed(7)
    drawn = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(7)
    np.random.seed(10)
    random.seed(12)
    assert (
        torch.equal(drawn[0], torch.rand(3)) and (drawn[1] == np.random.rand(3)).all() and drawn[2] == random.random()
    )


def test_no_steps_give_no_text(tiny_clip, images):
    args = {**CONFIG, "iter": 0}
    assert compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, args, "cpu", target_images=images[:1]) == ""


class _Vocabulary:
    """What a tokenizer of transformers has and open_clip's lacks; its special tokens have names of their own."""

    def get_vocab(self):
        return dict.fromkeys(map(str, range(49408)))


def test_a_tokenizer_of_any_kind_begins_a_prompt(tiny_clip):
    layer, args = tiny_clip.model.token_embedding, Namespace(prompt_len=4, prompt_bs=2)
    found = []
    for tokenizer in (tiny_clip.tokenizer, _Vocabulary()):
        compat.set_random_seed(3)
        found.append(compat.initialize_prompt(tokenizer, layer, args, "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][2][0, :7].tolist() == [49406, -1, -1, -1, -1, 49407, 0]


def test_memory_that_runs_out_is_the_error_that_torch_raised(tiny_clip, images, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pez_fast.compat.optimize.TextEncoder.__call__", full)
    with pytest.raises(torch.OutOfMemoryError):
        args = {**CONFIG, "prompt_bs": 3}
        compat.optimize_prompt(tiny_clip.model, tiny_clip.preprocess, args, "cpu", target_images=images[:1])
