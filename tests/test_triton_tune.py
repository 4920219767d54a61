"""The choice of the Triton kernels' tiles: what fits a chip, what was timed, what is stored."""

from __future__ import annotations

import json

import pytest
import torch
from inputs import DEVICES

from pez_fast import info

if info(DEVICES[-1])["implementations"]["triton"] is not True:
    pytest.skip("Triton is not usable here", allow_module_level=True)

from pez_fast._triton import tune


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Pretends an H100, with a file of its own; yields the configurations that were timed."""
    timed: list[tune.Scan] = []
    monkeypatch.setattr(tune, "INTERPRETED", False)
    monkeypatch.setattr(tune, "capability", lambda device: (9, 0))
    monkeypatch.setattr(tune, "_device_name", lambda device: "a GPU")
    monkeypatch.setattr(tune, "_milliseconds", lambda run: run() or -len(timed))  # the last one wins
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PEZ_FAST_AUTOTUNE", raising=False)
    tune._stored.cache_clear()
    yield timed
    tune._stored.cache_clear()


def failing(fails):
    """`_milliseconds` where some configurations cannot be launched."""

    def milliseconds(run):
        scan = run()
        if fails(scan):
            raise RuntimeError("out of resources: shared memory")
        return -scan.block_v

    return milliseconds


def test_a_candidate_that_fails_is_struck(tuned, monkeypatch, tmp_path):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    monkeypatch.setattr(tune, "_milliseconds", failing(lambda scan: scan.block_v == 256))
    with pytest.warns(UserWarning, match="cannot be timed and is left out: out of resources"):
        best = tune.configuration(torch.device("cpu"), 4096, 1024, 49408, lambda scan: scan)
    assert best == next(scan for scan in tune.candidates((9, 0), 4096) if scan.block_v == 128)
    assert (tmp_path / "pez_fast" / "triton.json").exists()


def test_the_default_where_all_fail(tuned, monkeypatch, tmp_path):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    monkeypatch.setattr(tune, "_milliseconds", failing(lambda scan: True))
    with pytest.warns(UserWarning, match="left out"):
        assert (
            tune.configuration(torch.device("cpu"), 4096, 1024, 49408, lambda scan: scan)
            == tune.candidates((9, 0), 4096)[0]
        )
    assert list(tmp_path.iterdir()) == []


def chosen(timed: list[tune.Scan], n: int = 4096) -> tune.Scan:
    return tune.configuration(torch.device("cpu"), n, 1024, 49408, timed.append)


def test_nothing_is_timed_unasked(tuned, tmp_path):
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0]
    assert tuned == [] and list(tmp_path.iterdir()) == []


def test_winner_is_kept(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    best = tune.candidates((9, 0), 4096)[-1]
    assert chosen(tuned) == best and len(tuned) == len(tune.candidates((9, 0), 4096))
    assert chosen(tuned) == chosen(tuned, 3000) == best and len(tuned) == len(tune.candidates((9, 0), 4096))
    chosen(tuned, 16)  # another kind of search
    assert len(tuned) > len(tune.candidates((9, 0), 4096))
    assert [path.name for path in (tmp_path / "pez_fast").iterdir()] == ["triton.json"]
    monkeypatch.delenv("PEZ_FAST_AUTOTUNE")
    tune._stored.cache_clear()
    tuned.clear()
    assert chosen(tuned) == best and tuned == []


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"a": 1}', '{"a": {"block_n": 1, "colour": 2}}'])
def test_unreadable_file_is_ignored(text, tuned, tmp_path):
    (tmp_path / "pez_fast").mkdir()
    (tmp_path / "pez_fast" / "triton.json").write_text(text)
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0]


def test_unknown_winner_is_ignored(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    chosen(tuned)
    path = tmp_path / "pez_fast" / "triton.json"
    stored = json.loads(path.read_text())
    for scan in stored.values():
        scan["block_v"] = 32
    path.write_text(json.dumps(stored))
    tune._stored.cache_clear()
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0]


def test_nothing_is_timed_under_capture(tuned, monkeypatch):
    monkeypatch.setenv("PEZ_FAST_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert chosen(tuned) == tune.candidates((9, 0), 4096)[0] and tuned == []


LIMITS = {  # KiB of shared memory for a program
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (11, 0): 227,
    (12, 0): 99,
    (12, 1): 99,
}


@pytest.mark.parametrize("n", [1, 16, 17, 64, 128, 129, 16384])
@pytest.mark.parametrize("capability", LIMITS)
def test_candidates_fit_the_chip(capability, n):
    choices = tune.candidates(capability, n)
    assert choices and len(set(choices)) == len(choices)
    assert tune.shared_limit(capability) == LIMITS[capability] * 1024
    for scan in choices:
        assert scan.shared_bytes <= LIMITS[capability] * 1024
        assert scan.block_n >= n or n > tune.FEW
        assert 256 % scan.block_n == 256 % scan.block_v == 0 and tune.WIDTH % scan.block_k == 0
        assert not scan.descriptor or LIMITS[capability] == 227
