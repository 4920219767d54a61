"""Data sets: the manifest, which refuses another configuration, and `pez-fast batch`, killed and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import complaint, run

import pez_fast

pytest.importorskip("pyarrow.parquet")

from test_dataset import QUICK, as_list, folder_of_images, rows_of, undisturbed_rows  # noqa: E402, F401

from pez_fast._shared.installation import install_hint
from pez_fast.dataset import Job, invert_dataset  # noqa: E402
from pez_fast.models.fingerprint import weights_digest  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"steps": 7}, "steps 6 there, 7 here;"),
        ({"seed": 1, "prompt_len": 2}, "prompt_len 3 there, 2 here; seed 0 there, 1 here;"),
        ({"banned": ("cat",)}, r"banned \[\] there, \['cat'\] here;"),
        ({"vocabulary": "full"}, "vocabulary 'stable' there, 'full' here;"),
    ],
)
def test_other_options_are_refused_before_the_model_is_asked(
    folder: Path, tiny_clip, tmp_path: Path, changed: dict, sentence: str
):
    invert_dataset(folder, tmp_path, tiny_clip, **QUICK)
    with pytest.raises(ValueError, match=f"holds results of another configuration: {sentence} take another --out"):
        Job(folder, tmp_path, QUICK | changed)
    Job(
        folder, tmp_path, QUICK | {"impl": "torch", "every": 7, "batch_size": 3}, shard="1/2", workers=1
    )  # these change no result


def test_another_source_or_model_is_refused(folder: Path, tiny_clip, tiny_clip64, tmp_path: Path):
    out = tmp_path / "out"
    invert_dataset(folder, out, tiny_clip, **QUICK)
    with pytest.raises(ValueError, match=r"source's kind 'folder' there, 'list' here; source's place '/.*' there"):
        Job(as_list(folder, [f"{k}.png" for k in range(10)], tmp_path), out, QUICK)
    with pytest.raises(
        ValueError,
        match=r"model's weights '\w{16}' there, '\w{16}' here; model's dtype 'float32' there, 'float64' here;",
    ):
        invert_dataset(folder, out, tiny_clip64, **QUICK)
    weight = tiny_clip.model.visual.proj
    before = weight[0, 0].item()
    try:
        weight[0, 0] += 1
        with pytest.raises(
            ValueError,
            match=r"another configuration: model's weights '\w{16}' there, '\w{16}' here; take another --out",
        ):
            invert_dataset(folder, out, tiny_clip, **QUICK)
    finally:
        weight[0, 0] = before
    assert invert_dataset(folder, out, tiny_clip, **QUICK).finished == 10


def test_a_manifest_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path):
    for text in ("{", "[]", "{}"):
        (tmp_path / "_manifest.json").write_text(text)
        with pytest.raises(ValueError, match="_manifest.json cannot be read: "):
            Job(folder, tmp_path, QUICK)


def test_the_manifest_is_written_once_and_holds_the_fingerprint(folder: Path, tiny_clip, tmp_path: Path):
    (tmp_path / "._manifest.json.0123456789ab.tmp").write_text("{")  # of a run that was killed
    invert_dataset(folder, tmp_path, tiny_clip, shard="0/2", **QUICK)
    assert not list(tmp_path.glob(".*.tmp"))
    text = (tmp_path / "_manifest.json").read_text()
    value = json.loads(text)
    assert len(value["fingerprint"]) == 64 and value["configuration"]["steps"] == 6
    assert value["configuration"]["model's weights"] == weights_digest(tiny_clip.model)
    assert value["made with"]["pez_fast"] == pez_fast.__version__ and value["made with"]["torch"] == torch.__version__
    invert_dataset(folder, tmp_path, tiny_clip, shard="1/2", **QUICK)
    assert (tmp_path / "_manifest.json").read_text() == text


def test_options_that_do_not_suit_the_model_leave_no_manifest(folder: Path, tiny_clip, tmp_path: Path):
    with pytest.raises(ValueError, match="prompt_len must be at most 75"):
        invert_dataset(folder, tmp_path, tiny_clip, prompt_len=99, steps=1)
    assert invert_dataset(folder, tmp_path, tiny_clip, **QUICK).finished == 10


def test_the_command(monkeypatch: pytest.MonkeyPatch, folder: Path, undisturbed, tiny_clip, tmp_path: Path):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: tiny_clip)
    arguments = (
        "batch",
        folder,
        "--out",
        tmp_path / "out",
        "--steps",
        6,
        "--refine",
        0,
        "--prompt-len",
        3,
        "--batch-size",
        4,
    )
    result = run(*arguments, code=1)
    assert result.stdout == "" and rows_of(tmp_path / "out") == undisturbed
    lines = result.stderr.splitlines()
    assert (
        lines[1] == "0/10 images finished"
        and lines[-1] == f"10 of 10 images finished in {tmp_path / 'out'}, 2 of them unreadable"
    )
    assert [line.split()[0] for line in lines[2:-1]] == ["4/10", "10/10", "broken.png:", "sub/empty.JPG:"]
    assert all("images/s" in line and "left" in line and line.endswith('"') for line in lines[2:-3])
    assert all(" is in none of the formats " in line for line in lines[-3:-1])
    value = json.loads(run(*arguments, "--json", code=1).stdout)
    assert (value["images"], value["finished"], value["errors"], value["interrupted"]) == (10, 10, 2, False)
    assert complaint(*arguments, "--seed", 1).startswith(
        f"{tmp_path / 'out'} holds results of another configuration: seed 0 there, 1 here;"
    )


def test_ctrl_c_ends_the_command_as_it_does_others(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tiny_clip, tmp_path: Path
):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: tiny_clip)
    monkeypatch.setattr("pez_fast.dataset.job.RowLearner.rows", interrupt)
    result = run("batch", folder, "--out", tmp_path, code=130)
    assert result.stderr.splitlines()[-1] == "pez-fast: interrupted; the same command continues"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "--out", "o"], "the source {here}/nowhere does not exist"),
        ([".", "--out", "o"], "the source {here} holds no images"),
        (["list.txt"], "Missing option '--out'"),
        (["list.txt", "--out", "list.txt"], "the folder list.txt cannot be made"),
        (["list.txt", "--out", "o", "--batch-size", "0"], "batch_size must be a positive integer; got 0"),
        (["list.txt", "--out", "o", "--workers", "0"], "workers must be an integer from 1 to 1024; got 0"),
        (["list.txt", "--out", "o", "--shard", "4/4"], "shard must be i/n"),
        (["list.txt", "--out", "o", "--steps", "0"], "steps must be a positive integer; got 0"),
        (["list.txt", "--out", "o", "--engine", "spark"], "Invalid value for '--engine'"),
        (["list.txt", "--out", "o", "--column", "image"], "a column can be named for a .parquet file only"),
    ],
)
def test_wrong_usage_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a.png\n")
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    assert complaint("batch", *arguments).startswith(sentence.format(here=tmp_path))


def test_without_pyarrow_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert complaint("batch", folder, "--out", tmp_path / "out").endswith(install_hint("data"))
    assert not (tmp_path / "out").exists()


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert complaint("batch", folder, "--out", tmp_path, "--engine", "ray").endswith(install_hint("data,ray"))


def test_killed_at_random_moments():
    """Runs the benchmark on few images; it says what differs and exits with 1."""
    command = [
        sys.executable,
        "benchmarks/kill_batch.py",
        "--kills",
        "3",
        "--images",
        "22",
        "--damaged",
        "2",
        "--prompt-len",
        "3",
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("yes") == 7
