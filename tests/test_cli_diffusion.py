"""pez-fast invert-diffusion: what it prints, and that bad input is one sentence."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")
from pipelines import build  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import pez_fast  # noqa: E402
from pez_fast.cli import app  # noqa: E402

SHORT = ("--prompt-len", "3", "--steps", "4", "--held-out-every", "2", "--held-out", "4", "--noises", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "sd15"
    build("sd15").save_pretrained(path)
    return str(path)


@pytest.fixture
def image(tmp_path, images):
    path = tmp_path / "image.png"
    images[0].save(path)
    return str(path)


def run(*arguments):
    done = CliRunner().invoke(app, ["invert-diffusion", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_it_prints_what_the_function_finds(folder, image):
    status, out, err = run(image, "--pipeline", folder, *SHORT, "--seed", "3")
    pipeline = pez_fast.load_pipeline(folder)
    options = {"prompt_len": 3, "steps": 4, "held_out_every": 2, "held_out": 4, "noises": 2, "seed": 3}
    expected = pez_fast.invert_diffusion(image, pipeline, **options)
    assert status == 0 and out == f"{expected.prompt}\n"
    assert f"noise error {-expected.text_score:.4f}, 4 steps" in err and "cosine" not in err
    status, out, _ = run(image, "--pipeline", folder, *SHORT, "--seed", "3", "--json")
    found = json.loads(out)
    assert status == 0 and found["ids"] == expected.ids and found["text_score"] == pytest.approx(expected.text_score)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--pipeline must name a folder or a pipeline on the hub"),
        (("--pipeline", "."), "holds no model_index.json"),
        (("--pipeline", "PIPELINE", "--timesteps", "0.9", "0.2"), "timesteps must be two rising shares from 0 to 1"),
        (("--pipeline", "PIPELINE", "--noises", "0"), "noises must be a positive integer; got 0"),
        (("--pipeline", "PIPELINE", "--prompt-len", "99"), "prompt_len must be at most"),
        (("--pipeline", "PIPELINE", "--pipeline-dtype", "int8"), "--pipeline-dtype must be one of float32"),
        (("--pipeline", "PIPELINE", "--history"), "--history has an effect only with --json"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(folder, image, arguments, sentence):
    given = [folder if argument == "PIPELINE" else argument for argument in arguments]
    status, out, err = run(image, *given)
    assert status == 2 and out == "" and sentence in err and "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("pez-fast: error: ")
