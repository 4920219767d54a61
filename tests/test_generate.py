"""Images from prompts by pipelines of diffusers, from Python and from the command line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import KINDS, SIDE, build, pipeline_of
from typer.testing import CliRunner

import pez_fast
from pez_fast.cli import app
from pez_fast.models.diffusion import FedText
from pez_fast.report.generated_sheet import MadeRow, draw_generated
from pez_fast.report.sheet import MARGIN, WIDTH
from pez_fast.result import PromptResult

FEW = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline as a user has it on disk."""
    place = tmp_path_factory.mktemp("pipelines") / "tiny"
    build().save_pretrained(place)
    return place


def pixels(image):
    return np.asarray(image)


def same(images, others):
    return len(images) == len(others) and all(
        np.array_equal(pixels(a), pixels(b)) for a, b in zip(images, others, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_pipelines_own_and_do_not_depend_on_their_number(kind):
    pipeline = pipeline_of(kind)
    made = pez_fast.generate("the cat", pipeline, num_images=3, seed=5, **FEW)
    assert made.prompt == "the cat" and made.seeds == [5, 6, 7] and made.prompt_2 is None
    assert made.images[0].size == (SIDE, SIDE)
    for k, image in enumerate(made.images):
        alone = pez_fast.generate("the cat", pipeline, seed=5 + k, **FEW)
        plain = pipeline(prompt="the cat", generator=torch.Generator().manual_seed(5 + k), **FEW).images
        assert same(alone.images, [image]) and same(plain, [image])
    assert not same(made.images[:1], made.images[1:2])
    several = pez_fast.generate(["a dog", PromptResult(prompt="the cat")], pipeline, num_images=2, seed=5, **FEW)
    assert [one.prompt for one in several] == ["a dog", "the cat"] and same(several[1].images, made.images[:2])


def test_a_second_prompt_is_for_two_text_encoders():
    pipeline = pipeline_of("sdxl")
    both = pez_fast.generate((PromptResult(prompt="the cat"), "a dog"), pipeline, **FEW)
    assert (both.prompt, both.prompt_2) == ("the cat", "a dog")
    plain = pipeline(prompt="the cat", prompt_2="a dog", generator=torch.Generator().manual_seed(0), **FEW).images
    assert same(both.images, plain)
    with pytest.raises(ValueError, match="prompt_2 is for pipelines with two text encoders; .* got 'a dog'"):
        pez_fast.generate(("the cat", "a dog"), pipeline_of(), **FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_a_soft_prompt_is_fed_as_embeddings(kind):
    """With the tokens' own embeddings it makes what their text makes."""
    pipeline = pipeline_of(kind)
    text = FedText(pipeline)
    ids = text.vocabulary.stable()[100:104]
    soft = text.table().weight[ids]
    result = PromptResult(prompt=text.vocabulary.decode(ids), ids=ids, soft_prompt=soft)
    made = pez_fast.generate(result, pipeline, **FEW)
    assert made.soft and made.prompt == result.prompt
    of_text = pez_fast.generate(result.prompt, pipeline, **FEW)
    difference = np.abs(pixels(made.images[0]).astype(int) - pixels(of_text.images[0]))
    assert not of_text.soft and difference.max() <= 1
    other = pez_fast.generate(PromptResult(prompt="x", soft_prompt=3 * soft.flip(0)), pipeline, **FEW)
    assert not same(other.images, made.images)
    with pytest.raises(ValueError, match="embeddings must have .* dimensions for this pipeline; got 7"):
        pez_fast.generate(PromptResult(prompt="x", soft_prompt=soft[:, :7]), pipeline, **FEW)


def test_similarity_is_the_mean_cosine_with_the_originals(tiny_clip, images):
    pipeline, referee = pipeline_of(), pez_fast.load_clip("emoji")
    options = {"clip": tiny_clip, "referee": referee, "num_images": 2, **FEW}
    made = pez_fast.generate("the cat", pipeline, images=images[:3], **options)
    for model, scores in ((tiny_clip, made.similarity), (referee, made.referee_similarity)):
        cosines = model.encode_images(made.images) @ model.encode_images(images[:3]).T
        assert scores == pytest.approx(cosines.mean(1).tolist(), abs=1e-6)
    several = pez_fast.generate(["a dog", "the cat"], pipeline, images=[images[3], images[:3]], **options)
    assert several[1].similarity == made.similarity and several[0].similarity != made.similarity
    values = json.loads(made.to_json())
    assert values["similarity"] == made.similarity and values["seeds"] == [0, 1] and "images" not in values


@pytest.mark.parametrize(
    "arguments, kind, said",
    [
        ({"pipeline": 3}, TypeError, "pipeline must be a pipeline of diffusers, as load_pipeline returns; got int"),
        ({"result_or_text": ""}, ValueError, "result_or_text must not be empty; got ''"),
        ({"result_or_text": []}, ValueError, "result_or_text must hold at least one prompt; got an empty list"),
        ({"result_or_text": 3}, TypeError, "result_or_text must be a text or a result with a prompt; got int"),
        ({"result_or_text": ("a", "b", "c")}, ValueError, "must be one prompt or a pair of them; got 3"),
        ({"result_or_text": "the cat " * 40}, ValueError, "prompt must have at most 77 tokens, .* has 82"),
        ({"result_or_text": PromptResult(error="no image")}, ValueError, "holds no prompt: no image"),
        ({"num_images": 0}, ValueError, "num_images must be an integer, at least 1; got 0"),
        ({"seed": -1}, ValueError, "seed must be an integer, at least 0; got -1"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be an integer, at least 1; got 0"),
        ({"generator": None}, TypeError, "'generator' is not an option of generate, which sets it itself"),
        ({"stepz": 3}, TypeError, "'stepz' is neither an option of generate nor one of StableDiffusionPipeline"),
        ({"images": "a.png"}, ValueError, "images is given without clip or referee"),
        ({"clip": object()}, TypeError, "clip must come from load_clip, or have encode_images; got object"),
    ],
)
def test_bad_input_is_one_sentence(arguments, kind, said):
    with pytest.raises(kind, match=said):
        pez_fast.generate(**{"result_or_text": "the cat", "pipeline": pipeline_of(), **arguments})


def test_bad_originals_are_one_sentence(tiny_clip, images):
    for originals, prompts, said in (
        (None, "cat", "clip and referee need images"),
        ([], "cat", "images must hold at least one image for each prompt; got an empty list"),
        ("no such.png", "cat", "image no such.png does not exist or is no file"),
        (images[:3], ["cat", "dog"], "images must be a list with one entry for each of the 2 prompts; got 3"),
        ("a.png", ["cat", "dog"], "images must be a list with one entry for each of the 2 prompts; got str"),
    ):
        with pytest.raises(ValueError, match=said):
            pez_fast.generate(prompts, pipeline_of(), clip=tiny_clip, images=originals, **FEW)


def test_pipelines_that_cannot_be_had_are_one_sentence(tmp_path, folder, monkeypatch):
    with pytest.raises(ValueError, match="holds no model_index.json"):
        pez_fast.load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="could not be downloaded or read: "):
        pez_fast.load_pipeline(str(tmp_path))
    with pytest.raises(ValueError, match="name='nobody/nothing' could not be downloaded or read: "):
        pez_fast.load_pipeline("nobody/nothing")
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype of torch; got 'float32'"):
        pez_fast.load_pipeline(str(folder), dtype="float32")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"diffusers cannot be imported \(.*\); pip install .*\[diffusion\]"):
        pez_fast.load_pipeline(str(folder))


def test_the_sheet_shows_originals_and_generated_images(images):
    made = pez_fast.generate(["the cat", "a red dog"], pipeline_of(), num_images=5, **FEW)
    green = Image.new("RGB", (30, 30), (0, 200, 0))
    for one in made:
        one.images[-1] = Image.new("RGB", (30, 30), (200, 0, 0))
    drawn = draw_generated([MadeRow([green], made[0]), MadeRow([], made[1])], "a pipeline")
    seen = pixels(drawn)
    assert drawn.width == WIDTH
    found = {name: np.argwhere((seen == value).all(-1)) for name, value in (("o", (0, 200, 0)), ("g", (200, 0, 0)))}
    assert len(found["o"]) > 1000 and found["o"][:, 1].min() == MARGIN
    assert len(found["g"]) > 2000 and found["g"][:, 1].min() > WIDTH // 3


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def test_the_command_writes_images_and_a_sheet(folder, tmp_path, images):
    images[0].save(tmp_path / "a.png")
    out, sheet, place = tmp_path / "out.png", tmp_path / "sheet.png", ["--pipeline", folder]
    more = ["--num-inference-steps", 2, "--image", tmp_path / "a.png", "--model", "emoji", "--sheet", sheet]
    done = run("the cat", *place, "--out", out, *more)
    assert done.exit_code == 0 and done.stdout == f"{out}\n" and "similarity " in done.stderr
    assert same([Image.open(out)], pez_fast.generate("the cat", pipeline_of(), **FEW).images) and sheet.is_file()
    assert run("the cat", *place, "--out", out, *more).exit_code == 0, "what it wrote itself is replaced"
    results = tmp_path / "found.json"
    results.write_text(json.dumps([{"image": "a", "prompt": "the cat"}, {"image": "b", "prompt": "", "error": "bad"}]))
    done = run("a dog", *place, "--results", results, "--out", out, "--num-inference-steps", 2, "--json")
    found = json.loads(done.stdout)
    assert [one["prompt"] for one in found] == ["a dog", "the cat"]
    assert [one["files"] for one in found] == [[str(tmp_path / f"out-{k}.png")] for k in (1, 2)]


def test_the_command_refuses_in_one_sentence(folder, tmp_path, images):
    photo = tmp_path / "photo.png"
    images[0].save(photo)
    place = ["--pipeline", folder]
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    for arguments, said in (
        (["cat"], "--pipeline must name a folder"),
        ([*place], "give a prompt, or --results"),
        ([" ", *place], "a prompt must not be empty"),
        (["cat", *place, "--out", photo], "is no image of pez_fast, so it is left as it is"),
        (["cat", *place, "--out", tmp_path / "x.jpg"], "the image must be a .png file"),
        (["cat", *place, "--dtype", "int8"], "--dtype must be one of float32, bfloat16, float16; got 'int8'"),
        (["cat", *place, "--out", tmp_path / "x.png", "--num-images", 0], "--num-images must be at least 1; got 0"),
        (["cat", *place, "--out", tmp_path / "x.png", "--prompt-2", "dog"], "prompt_2 is for pipelines with two"),
        (["cat", "--pipeline", tmp_path, "--out", tmp_path / "x.png"], "holds no model_index.json"),
        ([*place, "--results", bad], "holds something else than results"),
        ([*place, "--results", photo], "holds no JSON"),
        ([*place, "--results", tmp_path / "no.json"], "cannot be read: No such file"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and said in done.stderr, (arguments, done.stderr, done.exception)
        assert "Traceback" not in done.output and done.stderr.count("error:") == 1
