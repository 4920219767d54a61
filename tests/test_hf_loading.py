"""CLIP-like models of transformers: in every task and on the command line, and what is refused as one sentence."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from inputs import refused
from towers import CONTEXT, MODELS, built, clip_tokenizer, save
from typer.testing import CliRunner

import pez_fast
from pez_fast._shared.installation import install_hint
from pez_fast.cli import app
from pez_fast.dataset import invert_dataset
from pez_fast.models import ClipEncoder, HFClipEncoder, hf_loading

QUICK = {"prompt_len": 3, "steps": 6, "refine": 2}
FOUR = [name for name in MODELS if name in ("clip", "clip, text", "siglip", "siglip2")]
EACH = pytest.mark.parametrize("name", FOUR)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp("tower"), name) for name in FOUR}


@pytest.fixture(scope="module")
def load(folders):
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = pez_fast.load_clip(folders[name], device="cpu")
        return loaded[name]

    return get


@pytest.fixture(scope="module")
def files(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("pictures")
    for k, image in enumerate(images[:3]):
        image.save(folder / f"{k}.png")
    return folder


@EACH
def test_every_task_runs(load, name, files, tmp_path):
    clip, paths = load(name), sorted(files.glob("*.png"))
    results = pez_fast.invert_batch([*paths, files / "missing.png"], clip, **QUICK)
    alone = pez_fast.invert(paths[1], clip, **QUICK)
    assert alone.ids == results[1].ids and alone.history == results[1].history
    assert results[3].error and "does not exist" in results[3].error
    scores = pez_fast.score(paths, [result.prompt for result in results[:3]], clip)
    for k, result in enumerate(results[:3]):
        assert len(result.ids) == 3 and result.model == clip.name and result.ids_score > result.history[0]
        assert result.text_score == pytest.approx(float(scores[k, k]), abs=1e-5)
        assert result.ids_score == pytest.approx(result.text_score, abs=1e-5)
    both = pez_fast.invert(paths, clip, weights=[1, 1, -0.5], prefix="a red", suffix="house", **QUICK)
    assert both.prompt.strip().startswith("a red ") and both.prompt.endswith(" house")
    short = pez_fast.distill("the cat of a blue house and the red dogs", clip, **QUICK)
    assert short.text_score == pytest.approx(
        float(
            clip.encode_texts([short.prompt])[0] @ clip.encode_texts(["the cat of a blue house and the red dogs"])[0]
        ),
        abs=1e-5,
    )
    pytest.importorskip("pyarrow")
    summary = invert_dataset(files, tmp_path / "out", clip, **QUICK)
    assert (summary.finished, summary.errors) == (3, 0)


@EACH
def test_a_search_finds_a_prompt_that_is_known(load, name):
    """The features of a text as the target: after the search its prompt is nearer than any at the start."""
    clip = load(name)
    result = pez_fast.distill("a red dog of the house", clip, prompt_len=4, steps=150, restarts=2)
    assert result.text_score > 0.85 > result.history[0]


@EACH
def test_the_command_line(folders, name, files):
    command = ["invert", str(files / "0.png"), "--model", folders[name], "--prompt-len", "3", "--steps", "5"]
    done = CliRunner().invoke(app, [*command, "--refine", "0", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["model"] == folders[name] and len(result["ids"]) == 3 and result["prompt"]
    done = CliRunner().invoke(app, ["score", str(files / "0.png"), result["prompt"], "--model", folders[name]])
    assert done.exit_code == 0 and f"{result['text_score']:.3f}" in done.output, done.output


def test_the_ways_to_name_a_model(folders, monkeypatch, tiny_clip_dir, tmp_path):
    assert isinstance(pez_fast.load_clip(f"hf:{folders['clip']}", device="cpu"), HFClipEncoder)
    loaded = pez_fast.load_clip(Path(folders["siglip"]), device="cpu")
    assert repr(loaded) == f"HFClipEncoder({folders['siglip']!r}, SiglipModel, float32 on cpu)"
    monkeypatch.setattr(hf_loading, "source_of", lambda name: folders[name.removeprefix("hf:owner/")])
    assert pez_fast.load_clip("hf:owner/clip", device="cpu").name == "hf:owner/clip"
    both = tmp_path / "both"  # a folder with both configurations is one of open_clip
    shutil.copytree(tiny_clip_dir, both)
    shutil.copy(Path(folders["clip"]) / "config.json", both)
    assert isinstance(pez_fast.load_clip(both, device="cpu"), ClipEncoder)


@EACH
def test_objects_that_are_handed_in(load, name, images):
    from transformers import CLIPProcessor, Siglip2Processor, SiglipProcessor

    model, tokenizer, processor, vision = built(name)
    kind = {"siglip": SiglipProcessor, "siglip2": Siglip2Processor}.get(name, CLIPProcessor)
    whole = HFClipEncoder(model, kind(processor, tokenizer), vision_model=vision, name="mine")
    parts = HFClipEncoder(model, tokenizer, processor, vision)
    assert whole.name == "mine" and whole.context_length == parts.context_length == CONTEXT
    for other in (whole, parts):
        assert torch.equal(other.encode_texts(["a cat"]), load(name).encode_texts(["a cat"]))
        assert torch.equal(other.encode_images(images[:2]), load(name).encode_images(images[:2]))


def test_a_text_model_alone_is_for_texts(folders, tmp_path, files):
    folder = shutil.copytree(folders["clip, text"], tmp_path / "text", ignore=shutil.ignore_patterns("image_encoder"))
    clip = pez_fast.load_clip(folder, device="cpu")
    assert pez_fast.distill("the cat of a blue house", clip, **QUICK).text_score > 0
    sentence = "is a CLIPTextModelWithProjection, which takes no images without a CLIPVisionModelWithProjection beside"
    picture = files / "0.png"
    for call in (
        lambda: pez_fast.invert(picture, clip),
        lambda: pez_fast.invert_batch([picture], clip),
        lambda: pez_fast.score([picture], ["a cat"], clip),
        lambda: invert_dataset(files, tmp_path / "out", clip),
        lambda: clip.encode_images([picture]),
        lambda: clip.encode_pixels([torch.zeros(3, 32, 32)]),
    ):
        with pytest.raises(TypeError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)
    done = CliRunner().invoke(app, ["invert", str(picture), "--model", str(folder)])
    assert done.exit_code == 2 and "Traceback" not in done.output and "takes no images" in done.output


def changed(folder, tmp_path, remove=(), **config):
    """A copy of a folder without some of its files and with other values in its configuration."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for file in remove:
        (copy / file).unlink(missing_ok=True)
    told = json.loads((copy / "config.json").read_text()) if (copy / "config.json").exists() else {}
    if config:
        (copy / "config.json").write_text(json.dumps({**told, **config}))
    return copy


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
FOLDERS = {  # a folder that is changed, how, and what is said
    "no tokenizer": ("clip", {"remove": TOKENIZER}, "holds no tokenizer"),
    "no image processor": ("siglip", {"remove": ["preprocessor_config.json"]}, "holds no image processor"),
    "no weights": ("clip", {"remove": ["model.safetensors"]}, "could not be downloaded or read"),
    "weights of another": (
        "clip",
        {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"},
        "holds a checkpoint that is not one of its CLIPTextModelWithProjection: it lacks",
    ),
    "another kind": (
        "clip",
        {"architectures": ["CLIPForImageClassification"]},
        "holds a CLIPForImageClassification; the models of transformers that can be used are CLIPModel, CLIPText",
    ),
    "a language model": ("clip", {"architectures": None, "model_type": "gpt2"}, "holds a gpt2; the models of"),
    "an unknown type": ("clip", {"model_type": "nothing"}, "could not be downloaded or read"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_do_not_hold_what_is_needed(folders, tmp_path, case):
    name, how, sentence = FOLDERS[case]
    folder = changed(folders[name], tmp_path, **how)
    with pytest.raises(ValueError, match=f"name={str(folder)!r} {sentence}") as caught:
        pez_fast.load_clip(folder, device="cpu")
    assert "\n" not in str(caught.value)
    done = CliRunner().invoke(app, ["invert", "a.png", "--model", str(folder)])
    assert done.exit_code == 2 and "Traceback" not in done.output


def test_a_damaged_part_is_one_sentence(folders, tmp_path):
    for file in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        folder = Path(shutil.copytree(folders["clip"], tmp_path / file))
        (folder / file).write_bytes(b"no such thing")
        with pytest.raises(ValueError, match=f"name={str(folder)!r} ") as caught:
            pez_fast.load_clip(folder, device="cpu")
        assert "\n" not in str(caught.value), file


def test_names_that_cannot_be_had(folders, tmp_path):
    with refused(ValueError, "name='hf:nobody/nothing' could not be downloaded or read: "):
        pez_fast.load_clip("hf:nobody/nothing")
    with refused(ValueError, "pretrained='openai' does not go with name='hf:nobody/nothing'"):
        pez_fast.load_clip("hf:nobody/nothing", "openai")
    with pytest.raises(ValueError, match=re.escape(f"name='hf:{tmp_path}' holds no config.json")):
        pez_fast.load_clip(f"hf:{tmp_path}")
    with pytest.raises(ValueError, match="holds no open_clip_config.json, nor a model that transformers has saved"):
        pez_fast.load_clip(tmp_path)
    with refused(ValueError, "name must be the name of a model or a folder; got 'hf:'"):
        pez_fast.load_clip("hf:")


def parts(name, **other):
    model, tokenizer, images, vision = built(name)
    return {"model": model, "processor": tokenizer, "image_processor": images, "vision_model": vision, **other}


OBJECTS = [
    (lambda: {**parts("clip"), "model": torch.nn.Linear(2, 2)}, TypeError, "model must be a CLIPModel, .* got Linear"),
    (lambda: parts("clip", processor="clip"), TypeError, "processor must be a processor or a tokenizer .* got str"),
    (lambda: parts("clip", processor=None), TypeError, "processor must be a processor or a tokenizer .* got NoneType"),
    (lambda: parts("clip", image_processor=None), ValueError, "image_processor must be given for a CLIPModel"),
    (lambda: parts("clip, text", image_processor=None), ValueError, "image_processor must be given for a CLIPTextMo"),
    (lambda: parts("siglip", vision_model=built("clip, text")[3]), ValueError, "vision_model goes with a CLIPTextMo"),
    (lambda: parts("clip, text", vision_model=built("clip")[0]), TypeError, "vision_model must be a CLIPVisionModelW"),
]


@pytest.mark.parametrize(("given", "error", "sentence"), OBJECTS)
def test_objects_that_do_not_go_together(given, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        HFClipEncoder(**given())
    assert "\n" not in str(caught.value)


def test_more_objects_that_do_not_go_together():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    narrow = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**built("clip, text")[3].config.to_dict() | {"projection_dim": 8})
    )
    with refused(ValueError, "vision_model gives features of 8 dimensions, and model of 16"):
        HFClipEncoder(**parts("clip, text", vision_model=narrow))
    tokenizer = clip_tokenizer.__wrapped__()
    tokenizer.pad_token = None
    with refused(ValueError, "CLIPTokenizer has no padding token, and the model reads padded texts"):
        HFClipEncoder(**parts("clip", processor=tokenizer))


def test_ends_and_tokens_that_the_model_does_not_know(load):
    model, tokenizer, images, _ = built("clip")
    model.text_model.eos_token_id = 7
    with refused(ValueError, "model pools its end token 7, which its tokenizer does not write behind a text"):
        HFClipEncoder(model, tokenizer, images).bind(3)
    tokenizer = clip_tokenizer.__wrapped__()
    tokenizer.add_tokens(["zebra"])
    clip = HFClipEncoder(built("clip")[0], tokenizer, images)
    with refused(ValueError, "text 'a zebra' holds the token 'zebra', for which the model has no embedding"):
        clip.encode_texts(["a zebra"])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.bind(0), "prompt_len must be a positive integer; got 0"),
        (lambda c: c.bind(23), "prompt_len must be at most 22: the context has 24 places and 2 are taken; got 23"),
        (lambda c: c.bind(22, "a red"), "prompt_len must be at most 20"),
        (lambda c: c.bind(3, "the cat " * 12), "prefix and suffix must leave room for the prompt"),
        (lambda c: c.table("half"), "vocabulary must be one of stable, words, full, a list of words"),
    ],
)
def test_prompts_that_do_not_fit(load, call, sentence):
    with refused(ValueError, sentence):
        call(load("clip"))


def test_a_missing_package_says_what_to_install(folders, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape(install_hint("lm"))):
        pez_fast.load_clip(folders["clip"])


def test_a_tokenizer_that_needs_another_package_says_which(folders, monkeypatch):
    import transformers

    def fails(source):
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found.\nMore.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(ValueError, match="has a tokenizer that needs more packages; pip install sentencepiece proto"):
        pez_fast.load_clip(folders["siglip"])


def test_loading_prints_nothing(folders, capfd):
    for name in FOUR:
        pez_fast.load_clip(folders[name], device="cpu")
    assert capfd.readouterr() == ("", "")
