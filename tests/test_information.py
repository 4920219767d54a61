"""`info()` and `impl`: an honest account of the implementations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inputs import DEVICES, refused

import pez_fast
from pez_fast import TokenTable, info, nearest_token, ops


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_info(device):
    about = info(device)
    assert about["implementations"].keys() == ops.IMPLEMENTATIONS.keys() == {"torch", "cpu", "triton", "cuda"}
    assert about["implementations"]["torch"] is True
    for usable in about["implementations"].values():
        assert usable is True or (isinstance(usable, str) and usable and "\n" not in usable)
    assert about["auto"].keys() == {"nearest", "splice"}
    assert all(about["implementations"][name] is True for name in about["auto"].values())
    assert about["pez_fast"] == pez_fast.__version__ and about["torch"] == torch.__version__


@pytest.mark.parametrize("name", ["numpy", "", "Torch", None, 3, ["torch"]])
def test_resolve_impl_refuses_the_unknown(name):
    with refused(ValueError, "impl must be one of auto, torch, cpu, triton, cuda; got "):
        ops.resolve_impl(name, torch.device("cpu"))


def test_auto_is_what_the_environment_names(monkeypatch):
    monkeypatch.setenv("PEZ_FAST_IMPL", "torch")
    assert info("cpu")["auto"] == {"nearest": "torch", "splice": "torch"}
    monkeypatch.setenv("PEZ_FAST_IMPL", "cuda")
    with refused(RuntimeError, "PEZ_FAST_IMPL='cuda' cannot run here: "):
        nearest_token(torch.ones(3), TokenTable(torch.eye(3)))
    monkeypatch.setenv("PEZ_FAST_IMPL", "foo")
    with refused(ValueError, "PEZ_FAST_IMPL must be one of auto, torch, cpu, triton, cuda; got 'foo'"):
        nearest_token(torch.ones(3), TokenTable(torch.eye(3)))
    monkeypatch.setenv("PEZ_FAST_IMPL", "auto")
    assert ops.resolve_impl("auto", torch.device("cpu")) in ("cpu", "torch")


def test_what_auto_skips_says_why(monkeypatch):
    passed = ops.Implementation("pez_fast._torch", lambda device: None, lambda device: "not yet run on hardware")
    monkeypatch.setattr(ops, "IMPLEMENTATIONS", {"young": passed, **ops.IMPLEMENTATIONS})
    about = info("cpu")
    assert about["implementations"]["young"] is True and "young" not in about["auto"].values()
    assert about["auto_skipped"]["young"] == "not yet run on hardware"
    assert ops.resolve_impl("young", torch.device("cpu")) == "young"


@pytest.fixture
def broken(monkeypatch):
    implementation = ops.Implementation("pez_fast._nowhere", lambda device: f"no luck on {device}")
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "broken", implementation)


def test_resolve_impl_refuses_the_unusable(broken):
    with refused(RuntimeError, "impl='broken' cannot run here: no luck on cpu"):
        ops.resolve_impl("broken", torch.device("cpu"))
    with refused(RuntimeError, "impl='broken' cannot run here: no luck on cpu"):
        nearest_token(torch.ones(3), TokenTable(torch.eye(3)), impl="broken")
    assert info("cpu")["implementations"]["broken"] == "no luck on cpu"
    assert "broken" not in info("cpu")["auto"].values()


def test_what_is_unusable_here_says_so():
    for name, usable in info("cpu")["implementations"].items():
        if usable is True:
            assert ops.resolve_impl(name, torch.device("cpu")) == name
        else:
            with refused(RuntimeError, f"impl={name!r} cannot run here: "):
                ops.resolve_impl(name, torch.device("cpu"))


def test_no_silent_fallback(monkeypatch):
    """An implementation that says that it can run, and then cannot, raises an error; no other takes its place."""
    taken = info("cpu")["auto"]["nearest"]
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "cpu", ops.Implementation("pez_fast._nowhere", lambda device: None))
    for impl in ("cpu", "auto") if taken == "cpu" else ("cpu",):
        with pytest.raises(ModuleNotFoundError, match="pez_fast._nowhere"):
            nearest_token(torch.ones(3), TokenTable(torch.eye(3)), impl=impl)


SOURCE = r"""
import sys, warnings
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    import torch, pez_fast
    tables = [pez_fast.TokenTable(torch.eye(3)) for _ in range(3)]
print(*(str(w.message) for w in caught), pez_fast.info("cpu")["implementations"]["cpu"], sep="\n")
"""


def test_a_clone_without_its_extension_says_so_once(tmp_path):
    """A script that is run inside a clone takes the package from there, whatever is installed."""
    root = Path(__file__).parents[1]
    for folder in ("pez_fast", "csrc"):
        shutil.copytree(
            root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__", "assets")
        )
    shutil.copy(root / "setup.py", tmp_path)
    (tmp_path / "script.py").write_text(SOURCE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if "site-packages" in p)}
    done = subprocess.run(
        [sys.executable, "-S", "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    warning, reason = done.stdout.splitlines()
    assert warning == f"searches are slow: {reason}" and str(tmp_path) in reason and "pip install -e" in reason
