"""The devices on which the GPU kernels are available."""

from __future__ import annotations

import pytest
import torch
from inputs import refused

from pez_fast import info, ops


@pytest.fixture(autouse=True)
def fresh_caches():
    ops._card_unavailable_reason.cache_clear()
    yield
    ops._card_unavailable_reason.cache_clear()


@pytest.fixture
def card(monkeypatch):
    """A GPU of this capability, as torch would report it; counts the questions. `hip`: the version, for AMD."""

    def pretend(capability: tuple[int, int], hip: str | None = None, there: bool = True) -> torch.device:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(ops, "_installed", lambda module: True)
        monkeypatch.setattr(torch.version, "hip", hip)
        for name, answer in (("is_available", there), ("current_device", 0), ("get_device_name", "Some card")):
            monkeypatch.setattr(torch.cuda, name, lambda device=None, answer=answer: answer)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: pretend.asked.append(1) or capability)
        return torch.device("cuda", 0)

    pretend.asked = []
    return pretend


OFFERED = {
    "sm_75": (((7, 5),), "it runs on NVIDIA GPUs from compute capability 8.0 on; Some card has 7.5"),
    "ROCm": (((9, 4), "6.4"), "it runs on NVIDIA GPUs, not on AMD's; this torch was built for ROCm 6.4"),
    "no card": (((9, 0), None, False), "it runs on NVIDIA GPUs; torch finds none here"),
    "sm_80": (((8, 0),), None),
    "sm_120": (((12, 0),), None),
}


@pytest.mark.parametrize("case", OFFERED)
@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_cards(impl, case, card):
    settings, reason = OFFERED[case]
    device = card(*settings)
    (shown,) = {info(d)["implementations"][impl] for d in (device, "cuda")}
    assert ops.resolve_impl("auto", device) == "torch"
    if not reason:
        assert shown is True and ops.resolve_impl(impl, device) == impl
        assert info(device)["auto_skipped"][impl] == "not yet run on hardware"
        assert len(card.asked) == 1, "a card is asked once"
        return
    assert shown.startswith(reason)
    with refused(RuntimeError, f"impl='{impl}' cannot run here: {reason}"):
        ops.resolve_impl(impl, device)


def test_nothing_installed(card, monkeypatch):
    device = card((8, 0))
    monkeypatch.setattr(ops, "_installed", lambda module: False)
    assert "extension was not built" in info(device)["implementations"]["cuda"]
    assert info(device)["implementations"]["triton"] == "triton is not installed"


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_devices(kind):
    about = info(kind)
    assert about["auto"] == {"nearest": "torch", "splice": "torch"} and about["device"]
    assert all(f"not on {kind}" in about["implementations"][impl] for impl in ("cuda", "cpu"))
