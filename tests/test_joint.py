"""Several encoders as one model: what a plain loop over them gives, one table for all, weights, and strange input."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from test_cli import complaint, run

import pez_fast
from pez_fast import JointModel, TokenTable
from pez_fast._shared import catalog
from pez_fast.models.clip import ClipEncoder
from pez_fast.objectives import Similarity

VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
PIXELS = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=32), is_train=False)
OPTIONS = {"prompt_len": 4, "steps": 6, "refine": 2}


def encoder(width: int, dim: int, size: float, seed: int, tokenizer=None, dtype=torch.float32, **text) -> ClipEncoder:
    torch.manual_seed(seed)
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": 2, "layers": 2, **text}
    model = open_clip.CLIP(dim, VISION, text_cfg)
    with torch.no_grad():
        model.token_embedding.weight.mul_(size)
        model.positional_embedding.mul_(5)
    tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=text_cfg["context_length"])
    return ClipEncoder(model.to(dtype), tokenizer, PIXELS, f"tower {seed}")


@pytest.fixture(scope="module")
def pair() -> list[ClipEncoder]:
    """Two encoders of different widths, whose tables are of different sizes."""
    return [encoder(32, 24, 20, 1), encoder(48, 16, 3, 2)]


@pytest.fixture(scope="module")
def joint(pair) -> JointModel:
    return JointModel(pair, [3, 1])


def test_loss_gradient_and_scores_are_those_of_a_plain_loop(joint, pair, images):
    targets = joint.encode_images(images[:3])
    bound, table = joint.bind(5, "a photo of", "at night"), joint.table()
    ids = table.ids[torch.randint(len(table.ids), (3, 5), generator=torch.Generator().manual_seed(0))]
    embeds = table.weight[ids].requires_grad_()
    loss, score = Similarity(targets)(bound(embeds, ids), ids)
    (gradient,) = torch.autograd.grad(loss.sum(), embeds)
    expected, parts = torch.zeros(3), []
    for model, share, scale in zip(pair, (0.75, 0.25), joint.scales, strict=True):
        own = model.embedding.weight[ids].detach().requires_grad_()
        cosine = (model.bind(5, "a photo of", "at night")(own, ids)["features"] * model.encode_images(images[:3])).sum(
            -1
        )
        parts.append(torch.autograd.grad(-share * cosine.sum(), own)[0] / scale)
        expected += share * cosine.detach()
    assert (score - expected).abs().max() < 1e-5 and (1 - loss - expected).abs().max() < 1e-5
    assert (gradient - torch.cat(parts, -1)).abs().max() < 1e-5 * max(1, gradient.abs().max())
    texts = [bound.text(row.tolist()) for row in ids]
    each = [pez_fast.score(images[:3], texts, model) for model in pair]
    assert (pez_fast.score(images[:3], texts, joint) - (0.75 * each[0] + 0.25 * each[1])).abs().max() < 1e-5


def test_every_encoder_reads_its_own_embeddings_to_the_bit(joint, pair):
    ids = joint.table().ids[torch.tensor([[5, 900, 77], [1, 2, 3]])]
    outputs = joint.bind(3)(joint.table().weight[ids], ids)
    assert (outputs["features"].norm(dim=-1) - 1).abs().max() < 1e-6
    for k, model in enumerate(pair):
        assert torch.equal(outputs[f"features.{k}"], model.bind(3)(model.embedding.weight[ids], ids)["features"])


def test_scales_are_powers_of_two_and_bring_the_tables_to_one_size(joint, pair):
    assert joint.scales == [1.0, 8.0]
    sizes = [
        scale * model.embedding.weight.square().mean().sqrt() for model, scale in zip(pair, joint.scales, strict=True)
    ]
    assert 2**-0.5 <= sizes[1] / sizes[0] <= 2**0.5
    assert JointModel(pair, scales=(1, 1)).scales == [1.0, 1.0]


def test_the_nearest_token_is_that_of_the_tables_side_by_side(pair):
    """In float64, the lowest id on ties, among the tokens that both allow."""
    with torch.no_grad():
        for k, model in enumerate(pair):
            model.embedding.weight[2000] = model.embedding.weight[1500]  # a tie in both
            model.embedding.weight[2001 + k] = model.embedding.weight[1501]  # and in one alone
    joint = JointModel(pair)
    table = joint.table("full", ["1", 320])
    scaled = [model.embedding.weight.double() * scale for model, scale in zip(pair, joint.scales, strict=True)]
    both = torch.cat(scaled, -1)
    soft = torch.randn(40, 80, generator=torch.Generator().manual_seed(3))
    soft[:4] = both[[2000, 1500, 2001, 2002]].float()
    unit = torch.nn.functional.normalize
    cosines = (unit(soft.double(), dim=-1) @ unit(both, dim=-1).T).masked_fill(~table.allowed, -2)
    expected = (cosines >= cosines.amax(-1, keepdim=True) - 1e-14).double().argmax(-1)
    assert pez_fast.nearest_token(soft, table)[0].tolist() == expected.tolist()
    assert expected[:4].tolist() == [1500, 1500, 2001, 2002]
    alone = [model.table("full", ["1", 320]).allowed for model in pair]
    assert torch.equal(table.allowed, alone[0] & alone[1]) and not table.allowed[320]


def test_only_tokens_that_all_allow_are_learned(pair):
    known = [pair[0].vocabulary.stable()[:50], pair[1].vocabulary.stable()[25:75]]
    few = [ClipEncoder(m.model, m.tokenizer, PIXELS, m.name, ids) for m, ids in zip(pair, known, strict=True)]
    assert JointModel(few).table().allowed.nonzero()[:, 0].tolist() == known[1][:25]
    few[1] = ClipEncoder(pair[1].model, pair[1].tokenizer, PIXELS, "other", pair[1].vocabulary.stable()[50:60])
    with pytest.raises(ValueError, match=r"^vocabulary='stable' leaves no token that all encoders of tower 1 \+ other"):
        JointModel(few).table()


@pytest.mark.parametrize("weights", [(1, 0), (0, 2)])
def test_an_encoder_without_weight_takes_no_part(pair, images, weights):
    k = weights.index(0)
    other, result = pair[1 - k], pez_fast.invert(images[0], JointModel(pair, weights), **OPTIONS)
    alone = pez_fast.invert(images[0], other, **OPTIONS)
    assert (result.ids, result.prompt, result.text_score) == (alone.ids, alone.prompt, alone.text_score)
    assert JointModel(pair, weights).table().dim == other.table().dim
    assert list(JointModel(pair, weights).bind(2).from_text(["a dog"])) == ["features", f"features.{1 - k}"]


def test_weights_count_by_their_ratio_and_change_the_choice(pair, images):
    first, second = (pez_fast.invert(images[1], JointModel(pair, w), **OPTIONS) for w in ((1, 3), (10, 30)))
    assert (first.ids, first.text_score) == (second.ids, second.text_score)
    assert pez_fast.invert(images[1], JointModel(pair, (1, 0.01)), **OPTIONS).ids != first.ids


def test_results_do_not_depend_on_the_batch(joint, images):
    several = pez_fast.invert_batch([images[0], "missing.png", images[1]], joint, **OPTIONS)
    assert "missing.png" in several[1].error
    for image, found in ((images[0], several[0]), (images[1], several[2])):
        alone = pez_fast.invert(image, joint, **OPTIONS)
        assert (alone.ids, alone.prompt, alone.history) == (found.ids, found.prompt, found.history)
        assert alone.ids_score == found.ids_score and alone.text_score == found.text_score
        assert found.model == "tower 1 + tower 2"
        assert abs(pez_fast.score([image], [found.prompt], joint).item() - found.text_score) < 1e-5


def test_every_task_takes_it(joint, pair, images, tmp_path):
    style = pez_fast.invert(images[:3], joint, weights=[1, 1, -0.5], **OPTIONS)
    short = pez_fast.distill("a photograph of a small red house at night", joint, prompt_len=3, steps=4, refine=0)
    assert len(style.ids) == 4 and len(short.ids) == 3
    best = pez_fast.score(images[:1], [style.prompt, short.prompt], joint)
    assert best.shape == (1, 2)
    for k, image in enumerate(images[:2]):
        image.save(tmp_path / f"{k}.png")
    from pez_fast.dataset import invert_dataset

    summary = invert_dataset(tmp_path, tmp_path / "out", joint, **OPTIONS)
    assert (summary.finished, summary.errors) == (2, 0)
    with pytest.raises(ValueError, match="shares"):
        invert_dataset(tmp_path, tmp_path / "out", JointModel(pair, [1, 3]), **OPTIONS)


def test_encoders_of_two_dtypes_keep_their_own(pair, images):
    narrow = encoder(48, 16, 3, 2, dtype=torch.bfloat16)
    joint = JointModel([narrow, pair[0]])
    assert joint.dtype == torch.float32
    ids = joint.table().ids[:6].view(2, 3)
    outputs = joint.bind(3, dtype=torch.float32)(joint.table().weight[ids], ids)
    own = narrow.bind(3)(narrow.embedding.weight[ids], ids)["features"]
    assert torch.equal(outputs["features.0"], own)
    assert pez_fast.invert(images[0], joint, **OPTIONS).text_score > -1


def test_the_shortest_context_counts(pair):
    joint = JointModel([pair[0], encoder(48, 16, 3, 2, context_length=12)])
    assert joint.context_length == 12
    with pytest.raises(ValueError, match="prompt_len must be at most 10: the context has 12 places"):
        joint.bind(11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, r"models must be a list of two or more encoders; got \[\]"),
        ({"models": "sdxl"}, "models must be a list of two or more encoders; got 'sdxl'"),
        ({"weights": [1]}, r"weights must be one number for each of the 2 encoders; got \[1\]"),
        ({"weights": "ab"}, "weights must be one number for each of the 2 encoders; got 'ab'"),
        ({"weights": [0, 0]}, "weights must be 0 or more, and not all 0"),
        ({"weights": [1, -1]}, "weights must be 0 or more, and not all 0"),
        ({"weights": [1, float("nan")]}, "weights must be finite numbers; got nan"),
        ({"weights": [1, None]}, "weights must be finite numbers; got None"),
        ({"scales": [1, 0]}, r"scales must be above 0; got \[1.0, 0.0\]"),
    ],
)
def test_bad_input_is_one_sentence(pair, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        JointModel(**{"models": pair, **arguments})


def test_models_that_cannot_be_joined(pair, joint):
    for wrong, message in ((3, "int, which lacks table, bind,"), (joint, "JointModel, which is itself joint")):
        with pytest.raises(TypeError, match=f"^models must hold encoders such as load_clip returns; got {message}"):
            JointModel([pair[0], wrong])
    more = open_clip.SimpleTokenizer(additional_special_tokens=["<x>"])
    cases = [
        (encoder(16, 8, 1, 3, more, vocab_size=49409), "one has 49408 tokens and the other 49409"),
        (encoder(16, 8, 1, 3, open_clip.SimpleTokenizer(clean="whitespace")), "they cut .Café, 3 DOGS"),
        (encoder(16, 8, 1, 3, more), "their special tokens are"),
    ]
    for other, reason in cases:
        with pytest.raises(ValueError, match=f"^models must share their tokens; tower 1 and tower 3 do not: {reason}"):
            JointModel([pair[0], other])


def test_load_joint_refuses_what_it_cannot_load(tiny_clip_dir):
    for names, message in (
        ("small", "names must be one of sdxl, sd3, or a list of names of models; got 'small'"),
        (["emoji"], r"names must be a list of two or more names of models; got \['emoji'\]"),
        (3, "names must be a list of two or more names of models; got 3"),
        (["emoji", None], "name must be the name of a model or a folder; got None"),
        (["emoji", str(tiny_clip_dir / "no")], "name='.*no' is no short name"),
    ):
        with pytest.raises(ValueError, match=message):
            pez_fast.load_joint(names)
    with pytest.raises(ValueError, match="weights must be one number for each of the 2 encoders"):
        pez_fast.load_joint("sdxl", [1, 2, 3])
    joint = pez_fast.load_joint(["emoji", tiny_clip_dir], device="cpu")
    assert joint.name == f"emoji + {tiny_clip_dir}" and isinstance(joint.table(), TokenTable)


def test_the_command_line_learns_and_scores_with_several(tiny_clip_dir, images, tmp_path):
    path, model = str(tmp_path / "a b.png"), f"emoji+{tiny_clip_dir}"
    images[0].save(path)
    learn = ["invert", path, "--model", model, "--device", "cpu", "--steps", "3", "--refine", "0", "--prompt-len", "3"]
    found = json.loads(run(*learn, "--encoder-weight", "3", "--encoder-weight", "1", "--json").stdout)
    assert found["model"] == f"emoji + {tiny_clip_dir}"
    scored = run("score", path, found["prompt"], "a red dog", "--model", model, "--device", "cpu", "--json")
    for row in json.loads(scored.stdout):
        assert list(row["encoders"]) == ["1. emoji", f"2. {tiny_clip_dir}"]
        assert abs(row["cosine"] - sum(row["encoders"].values()) / 2) < 1e-5
    told = complaint(*learn, "--encoder-weight", "3")
    assert told == "--encoder-weight must be given once for each of several encoders; got [3.0]"
    assert complaint(*learn, "--pretrained", "x").startswith("--pretrained is for one model, not for emoji+")
    assert "name='nope' is no short name" in complaint("invert", path, "--model", "emoji+nope")
    assert complaint("invert", path, "--model", "emoji+").startswith("name must be the name of a model or a folder")


def test_a_generators_name_stands_for_its_encoders():
    assert catalog.joint_names("sdxl") == catalog.joint_names("sd3") == ("sdxl-l", "sdxl-g")
    assert catalog.joint_names("sd15+sdxl-g") == ("sd15", "sdxl-g") and catalog.joint_names("sd15") == ()
    assert [row["name"] for row in json.loads(run("models", "sdxl", "--json").stdout)] == ["sdxl-l", "sdxl-g"]
    with pytest.raises(ValueError, match=r"name='sdxl' stands for several encoders, which load_joint\('sdxl'\) loads"):
        pez_fast.load_clip("sdxl", device="cpu")
