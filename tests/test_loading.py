"""Loading of models: from names, tags, folders and files; what cannot be had is one sentence."""

from __future__ import annotations

import io

import pytest
import safetensors.torch
import torch

import pez_fast
from pez_fast.models.loading import BUNDLED
from pez_fast.models.reasons import quoted


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("no-such-model",), "name='no-such-model' is no short name, no model of open_clip and no folder"),
        (("vit-b-32-q",), "did you mean ViT-B-32-quickgelu"),
        (("ViT-B-32",), "pretrained must be given for ViT-B-32: .*laion2b_s34b_b79k.*; got None"),
        (("ViT-B-32", "no-such-tag"), "pretrained='no-such-tag' is neither a file nor a tag of ViT-B-32"),
        (("ViT-B-32-quickgelu", "laion2b_s34b_b79k"), "its tags are openai"),
        (("ViT-B-32", "laion2b_s34b_b79k"), "could not be downloaded or read"),
        (("hf-hub:nobody/nothing",), "name='hf-hub:nobody/nothing' could not be downloaded or read"),
        (("local-dir:/no/such/folder",), "holds no open_clip_config.json"),
    ],
)
def test_models_that_cannot_be_had_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        pez_fast.load_clip(*arguments)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_file_is_loaded(tmp_path):
    import open_clip

    torch.manual_seed(7)
    model = open_clip.create_model("RN50")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = pez_fast.load_clip("RN50", str(tmp_path / "weights.pt"), device="cpu")
    assert torch.equal(clip.embedding.weight, model.token_embedding.weight)
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="could not be downloaded or read"):
        pez_fast.load_clip("RN50", str(tmp_path / "broken.pt"))


def test_quickgelu_is_set_from_the_tag(monkeypatch):
    import open_clip

    monkeypatch.setattr("pez_fast.models.loading.can_be_reached", lambda: True)
    seen = {}
    monkeypatch.setattr(
        open_clip, "create_model", lambda *a, **k: seen.update(k) or (_ for _ in ()).throw(RuntimeError("enough"))
    )
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(ValueError, match="enough"):
            pez_fast.load_clip("ViT-B-32", tag)
        assert seen["force_quick_gelu"] is quick


def test_a_torchvision_of_another_build_is_one_sentence(monkeypatch):
    import builtins

    real = builtins.__import__

    def broken(name, *rest, **more):
        if name == "open_clip":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match="install torch and torchvision together"):
        pez_fast.load_clip("emoji")


BAD = [
    ((None,), {}, "name must be the name of a model or a folder; got None"),
    ((("ViT-B-32", "openai"),), {}, r"name must be the name of a model or a folder; got \('ViT-B-32', 'openai'\)"),
    (("",), {}, "name must be the name of a model or a folder; got ''"),
    (("ViT-B-32", 3), {}, "pretrained must be a tag or the path of a checkpoint; got 3"),
    (("emoji",), {"device": "toaster"}, "device must be a device of torch, such as cuda or cpu; got 'toaster'"),
    (("emoji",), {"device": []}, r"device must be a device of torch, such as cuda or cpu; got \[\]"),
    (("emoji",), {"dtype": "float32"}, "dtype must be a floating-point dtype of torch; got 'float32'"),
    (("emoji",), {"dtype": torch.int64}, "dtype must be a floating-point dtype of torch; got torch.int64"),
]


@pytest.mark.parametrize(("arguments", "options", "sentence"), BAD)
def test_bad_arguments_of_load_clip_are_one_sentence(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pez_fast.load_clip(*arguments, **options)


def test_a_folder_may_be_a_path(tiny_clip_dir):
    assert pez_fast.load_clip(tiny_clip_dir, device="cpu").name == str(tiny_clip_dir)


def written(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def emoji_config():
    return (BUNDLED["emoji"] / "open_clip_config.json").read_bytes()


def checkpoint(**tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


FAILURES = {  # what a folder holds, and what is said
    "no checkpoint": ({}, "there is no checkpoint beside its configuration"),
    "of another model": (
        {"open_clip_model.safetensors": safetensors.torch.save({"x": torch.ones(1)})},
        "the checkpoint is one of another model",
    ),
    "damaged": ({"open_clip_model.safetensors": b"garbage"}, "the file is damaged, or no safetensors file"),
    "holds code": (
        {"open_clip_pytorch_model.bin": b"\x80\x02cos\nsystem\nq\x00."},
        "the file is no checkpoint of weights alone; one that holds other objects is not opened",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_loading_says_is_whole_and_plain(name, tmp_path):
    files, sentence = FAILURES[name]
    folder = written(tmp_path, {"open_clip_config.json": emoji_config(), **files})
    with pytest.raises(ValueError) as caught:
        pez_fast.load_clip(folder, device="cpu")
    assert str(caught.value) == f"name={str(folder)!r} could not be downloaded or read: {sentence}"


@pytest.mark.parametrize("arguments", [("ViT-B-32", "laion2b_s34b_b79k"), ("hf-hub:nobody/nothing",)])
def test_without_a_network_it_is_said_at_once(arguments):
    with pytest.raises(ValueError, match="it is not in the cache and there is no network; the bundled model 'emoji'"):
        pez_fast.load_clip(*arguments, device="cpu")


def test_a_checkpoint_of_another_model_is_said(tmp_path):
    path = written(tmp_path, {"other.pt": checkpoint(a=torch.ones(2))}) / "other.pt"
    with pytest.raises(ValueError, match="could not be downloaded or read: the checkpoint is one of another model"):
        pez_fast.load_clip("RN50", path, device="cpu")


def test_a_long_reason_is_cut_between_words():
    text = quoted(RuntimeError("word " * 200))
    assert len(text) <= 300 and text.endswith("word …") and quoted(KeyError()) == "KeyError"
