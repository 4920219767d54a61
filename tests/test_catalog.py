"""The catalogue of models: its sizes, its short names, what is in the cache, and the command that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import complaint, run

import pez_fast
from pez_fast._shared import catalog
from pez_fast._shared.catalog import CATALOG, DEFAULT_MODEL, find
from pez_fast.cli import timing
from pez_fast.cli.options import SearchFlags
from pez_fast.models import hub, loading

DIFFERENT = {entry.where: entry for entry in CATALOG if entry.repository}


@pytest.mark.parametrize("where", DIFFERENT)
def test_the_sizes_are_those_of_open_clips_configurations(where: str):
    import open_clip

    entry = DIFFERENT[where]
    config = open_clip.get_model_config(entry.model)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        model = kind(**config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert entry.parameters - sum(p.numel() for p in model.visual.parameters()) == entry.text_parameters
    text = config["text_cfg"]
    assert (text["width"], text["layers"]) == (entry.width, entry.layers)
    assert entry.context == (text["context_length"] if text.get("no_causal_mask") else 0)
    weights = open_clip.get_pretrained_cfg(entry.model, entry.pretrained)
    assert weights["hf_hub"].rstrip("/") == entry.repository


def test_the_bundled_model_has_the_size_that_is_said():
    clip, entry = pez_fast.load_clip("emoji", device="cpu"), find("emoji")
    assert entry is not None
    assert abs(sum(p.numel() for p in clip.model.parameters()) / entry.parameters - 1) < 0.001
    assert entry.width == clip.embedding.weight.shape[1] and entry.is_here()


def test_a_short_name_is_the_model_with_its_weights(monkeypatch: pytest.MonkeyPatch):
    import open_clip

    seen: list = []
    monkeypatch.setattr(loading, "can_be_reached", lambda: True)

    def create(name, **options):
        seen.append((name, options["pretrained"], options["force_quick_gelu"]))
        raise RuntimeError("enough")

    monkeypatch.setattr(open_clip, "create_model", create)
    for arguments in (("sd15",), ("sd21",), ("sdxl-g",), ("siglip",), ("small",), ("small", "openai")):
        with pytest.raises(ValueError, match="enough"):
            pez_fast.load_clip(*arguments, device="cpu")
    assert seen == [
        ("ViT-L-14", "openai", True),
        ("ViT-H-14", "laion2b_s32b_b79k", False),
        ("ViT-bigG-14", "laion2b_s39b_b160k", False),
        ("ViT-B-16-SigLIP", "webli", False),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "openai", True),
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sdx", "did you mean sdxl-l, sdxl-g?"), ("SD15", "did you mean sd15?"), ("smal", "did you mean small")],
)
def test_a_wrong_short_name_has_close_ones(name: str, hint: str):
    with pytest.raises(ValueError) as caught:
        pez_fast.load_clip(name)
    assert str(caught.value).startswith(f"name={name!r} is no short name, no model of open_clip and no folder; {hint}")
    assert complaint("models", name).rstrip(
        "?"
    ) == f"NAME must be a short name of a model; got {name!r}; {hint}".rstrip("?")
    assert "they are small, sd15" in complaint("models", "x")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's cache, empty."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put_into(cache: Path, name: str) -> None:
    entry = find(name)
    assert entry is not None and entry.repository is not None
    folder = cache / f"models--{entry.repository.replace('/', '--')}" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"x")


def test_the_cache_is_where_the_hubs_client_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):  # a later one wins
        monkeypatch.setenv(name, str(tmp_path / name))
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        assert str(catalog.hub_cache()) == told


def test_what_is_in_the_cache_is_shown(cache: Path):
    put_into(cache, "sd21")
    rows = {row["name"]: row for row in json.loads(run("models", "--json").stdout)}
    assert list(rows) == [entry.name for entry in CATALOG]
    assert {name for name, row in rows.items() if row["is_here"]} == {"sd21", "emoji"}
    assert rows["sd15"]["download_bytes"] == 4 * 427_616_513 and rows["emoji"]["download_bytes"] == 0
    assert all(row["seconds_per_image"] > 0 and row["seconds_are"] == "estimated" for row in rows.values())
    with pytest.raises(ValueError, match=r"no network; the cache holds 'sd21', and the bundled model 'emoji' needs"):
        pez_fast.load_clip("sd15", device="cpu")


def test_the_table_fits_into_eighty_columns(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run("models")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    small = next(line for line in lines if line.startswith("small"))
    assert "ViT-B-32" in small and "610 MB" in small and small.split()[-1] == "no"
    assert "guessed for this CPU" in result.stderr
    assert len(run("models", "ViT-L-14", "--json").stdout.split('"name"')) == 4  # three short names share it


def test_a_larger_model_is_guessed_to_be_slower():
    guesses = [timing.guessed_seconds(find(name), 3000, 32, 5e10) for name in ("emoji", "small", "sd21", "sdxl-g")]
    assert guesses == sorted(guesses) and guesses[0] > 0


def test_models_are_measured_with_random_weights(monkeypatch: pytest.MonkeyPatch):
    small = find("small")
    monkeypatch.setattr(timing, "matmul_speed", lambda: pytest.fail("guessed"))
    clip = timing.random_clip(small, "cpu")
    assert clip.embedding.weight.shape == (49408, 512) and all(p.isfinite().all() for p in clip.model.parameters())
    row = json.loads(run("models", "emoji", "--measure", "--device", "cpu", "--json").stdout)[0]
    assert row["seconds_are"] == "measured" and row["seconds_per_image"] > 0
    assert complaint("models", "--device", "cpu") == "--device has an effect only with --measure; got 'cpu'"


def test_models_needs_neither_torch_nor_open_clip():
    code = (
        "import sys, pez_fast.cli\ntry: pez_fast.cli.main()\n"
        "finally: assert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "models"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "sdxl-g" in done.stdout, done.stderr


def test_the_size_is_said_before_the_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: None)
    assert DEFAULT_MODEL == SearchFlags().model == "small"
    SearchFlags().load()
    SearchFlags(model="ViT-H-14").load()
    put_into(cache, "small")
    SearchFlags().load()
    SearchFlags(model="emoji").load()
    assert capsys.readouterr().err.splitlines() == [
        "loading the model small (ViT-B-32 laion2b_s34b_b79k); about 610 MB to download first",
        "loading the model ViT-H-14 with laion2b_s32b_b79k; about 3.9 GB to download first",
        "loading the model small (ViT-B-32 laion2b_s34b_b79k)",
        "loading the model emoji",
    ]


def test_without_a_network_the_hub_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants, utils

    class ConnectError(Exception):
        """As that of httpx."""

    asked: list = []

    class Session:
        def head(self, address, timeout):
            asked.append((address, timeout))
            raise ConnectError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(utils, "get_session", Session)
    monkeypatch.setattr(loading, "import_open_clip", lambda: pytest.fail("open_clip is slow to import"))
    with pytest.raises(ValueError, match="there is no network"):
        pez_fast.load_clip("small", device="cpu")
    assert asked == [(constants.ENDPOINT, 4)]
    with hub.without_waiting():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(Session, "head", lambda *_, **__: None)
    with hub.without_waiting():
        assert not constants.HF_HUB_OFFLINE
