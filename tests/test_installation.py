"""The command that installs an extra, by where the package came from; and why there is no CUDA."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import pez_fast
from pez_fast._shared import installation
from pez_fast._shared.installation import install_hint
from pez_fast.models import reasons

ORIGINS = {
    "an index": (None, "pip install 'pez_fast[data]'"),
    "a folder": ({"url": "file:///a%20b/c", "dir_info": {}}, "pip install '/a b/c[data]'"),
    "editable": ({"url": "file:///c", "dir_info": {"editable": True}}, "pip install -e '/c[data]'"),
    "git": (
        {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
        "pip install 'pez_fast[data] @ git+https://host/x.git@12ab'",
    ),
    "an archive": (
        {"url": "https://host/x.whl", "archive_info": {}},
        "pip install 'pez_fast[data] @ https://host/x.whl'",
    ),
}


class Installed:
    """A distribution with a direct_url.json."""

    def __init__(self, origin: dict | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


@pytest.mark.parametrize("name", ORIGINS)
def test_the_hint_names_where_the_package_came_from(name, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    origin, command = ORIGINS[name]
    monkeypatch.setattr(installation, "distribution", lambda _: Installed(origin))
    monkeypatch.setattr(installation, "_SOURCE", tmp_path)
    assert install_hint("data") == command


def test_a_source_folder_on_the_path_is_installed_from_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def absent(_):
        raise PackageNotFoundError

    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(installation, "_SOURCE", tmp_path)
    monkeypatch.setattr(installation, "distribution", absent)
    assert install_hint("data,ray") == f"pip install -e '{tmp_path}[data,ray]'"
    monkeypatch.setattr(installation, "_SOURCE", tmp_path / "site-packages")
    assert install_hint("data,ray") == "pip install 'pez_fast[data,ray]'"


def test_why_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError) as caught:
        pez_fast.load_clip("emoji", device="cuda")
    assert str(caught.value) == (
        "device 'cuda' cannot be used: torch finds no CUDA device here: this torch was built without CUDA; install one "
        "that was built with it"
    )
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert reasons.why_no_cuda() == f"CUDA_VISIBLE_DEVICES={hidden!r} hides all devices"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(reasons, "DRIVER", Path("/no/such/driver"))
    assert reasons.why_no_cuda() == "this torch was built with CUDA, but no NVIDIA driver is loaded"
    monkeypatch.setattr(reasons, "DRIVER", Path("/"))
    assert reasons.why_no_cuda().startswith("a driver is there, but torch cannot use it")


@pytest.mark.parametrize("device", ["meta", "vulkan", "xpu:40"])
def test_devices_that_cannot_compute_are_refused(device: str):
    with pytest.raises(ValueError, match=f"device .*{device}"):
        pez_fast.load_clip("emoji", device=device)
