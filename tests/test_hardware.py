"""The script for the first run on a GPU bears what it may meet there: rehearsals with faults put in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pez_fast import TokenTable, info

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

stages, adapters, measure = (import_module(name) for name in ("hardware_stages", "hardware_adapters", "measure"))
needs_the_extension = pytest.mark.skipif(
    info("cpu")["implementations"]["cpu"] is not True, reason="the C++ extension is missing"
)


def command(out: Path, *options: object) -> list[str]:
    given = ["--rehearse", "--call", "A", "--out", out, *options]
    return [sys.executable, str(BENCHMARKS / "hardware.py"), *map(str, given)]


def environment(folder: Path) -> dict[str, str]:
    """In which all that is started can be told by its command line, which names this folder."""
    return os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}


def running(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
        except OSError:
            continue
        found += [line] if str(folder) in line else []
    return found


@needs_the_extension
def test_what_one_does_costs_the_others_nothing(tmp_path):
    """One hangs, one crashes, one finds wrong ids."""
    faults = [word for fault in ("cpu=hang", "triton=crash", "torch=wrong") for word in ("--inject", fault)]
    options = ["--steps", "nearest", "targets", "--silence", 5, *faults]
    words, variables = command(tmp_path, *options), environment(tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "hardware_A.json").read_text())
    assert found["struck"].keys() == {"triton", "cpu"} and found["wrong"].keys() == {"torch"}
    assert found["struck"]["cpu"].startswith("hung: no word for 5 s, in search of 16 rows")
    assert found["struck"]["triton"].startswith("crashed: SIGABRT, in search of 16 rows")
    assert "1 wrong" in found["wrong"]["torch"]
    smoke, nearest = found["steps"]["smoke"], found["steps"]["nearest"]
    assert "hardware_faults.py" in smoke["cpu"]["tail"], "its stack says where it hangs"
    assert [(one["wrong"], len(one["examples"])) for one in smoke["torch"]["results"][:2]] == [(1, 1), (1, 1)]
    assert all(nearest[impl] == {"struck": found["struck"][impl]} for impl in ("triton", "cpu"))
    assert nearest["torch"]["marked"].startswith("finds wrong ids: ")
    assert all(case["wrong_ids"] > 0 and case["ms"] > 0 for case in nearest["torch"]["results"]["cases"])
    assert {case["name"] for case in nearest["baselines"]["results"]["cases"]} >= {"naive", "cached-fp32"}
    row = found["steps"]["targets"]["16"]["torch, before tuning"]
    assert row["ms"] > 0 and row["wrong"] == found["wrong"]["torch"] and row["met"] is False
    assert "struck: cpu: hung" in done.stdout and "WRONG" in done.stdout
    assert running(tmp_path) == []


@needs_the_extension
def test_what_was_found_survives_a_kill(tmp_path):
    """The first implementation raises, the second hangs; killed there, the file holds the first one's fault."""
    options = ["--steps", "smoke", "--impls", "cpu", "torch", "--inject", "cpu=raise", "--inject", "torch=hang"]
    with subprocess.Popen(command(tmp_path, *options), stdout=subprocess.DEVNULL, env=environment(tmp_path)) as child:
        try:
            wait(lambda: "cpu" in written(tmp_path).get("steps", {}).get("smoke", {}))
            wait(lambda: any("--impl torch" in line for line in running(tmp_path)))
        finally:
            child.send_signal(signal.SIGKILL)
    found = written(tmp_path)
    assert found["steps"]["smoke"].keys() == found["struck"].keys() == {"cpu"}
    assert found["struck"]["cpu"].startswith("raised: RuntimeError: this fault was put in, in search of 16 rows")
    wait(lambda: not running(tmp_path))


def written(folder: Path) -> dict:
    path = folder / "hardware_A.json"
    return json.loads(path.read_text()) if path.exists() else {}


def wait(until, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


@pytest.fixture
def staged():
    """300 rows, their keys as torch has them, and the product they come from."""
    generator = torch.Generator().manual_seed(0)
    adapter = adapters.Torch(TokenTable(torch.randn(700, 64, generator=generator)))
    x = torch.randn(300, 64, generator=generator)
    query = adapter.query(x)
    return adapter, x, query, adapter.keys(x), query["query"].double() @ adapter.unit.double().T


def test_stages_without_a_fault(staged):
    adapter, x, query, keys, product = staged
    assert stages.check_query(x, query)["mismatches"] == 0
    assert stages.check_keys(adapter, keys, product, adapter.slack())["mismatches"] == 0
    told = stages.check_decision(x, adapter, query["error"], keys)
    assert told["mismatches"] == told["keys_exclude_the_right_one"] == 0


def test_a_wrong_lane_shows(staged):
    """Rows 8 to 15 of every 128 miss lane 2's scores in odd tiles; where the right id is there, the keys exclude it."""
    adapter, x, query, keys, product = staged
    lane, tiles = torch.arange(32) % 4 == 2, keys.shape[1]
    rows = (torch.arange(300) % 128 >= 8) & (torch.arange(300) % 128 < 16)
    seen = product[:, : 128 * tiles].float().view(300, tiles, 128)[:, :, adapter.tokens].amax(-1)
    hidden = rows[:, None, None] & (torch.arange(tiles) % 2 == 1)[None, :, None] & lane
    best = seen.masked_fill(hidden, -1).topk(2, -1)
    bad = (best.values.view(torch.int32) & -32) | best.indices.int()
    told = stages.check_keys(adapter, bad, product, adapter.slack())
    assert told["mismatches"] == told["missed_off"] > 0 and told["score_off"] == told["twice_off"] == 0
    assert set(told["by_row_of_128"]) <= set(range(8, 16)) and told["by_tile_parity"].keys() == {1}
    # The best that was not seen is lane 2's, or what came second to it.
    assert sum(count for group, count in told["by_best_group"].items() if group % 4 == 2) > told["mismatches"] / 2
    assert {example["row_of_128"] for example in told["examples"]} <= set(range(8, 16))
    blamed = stages.check_decision(x, adapter, query["error"], bad)
    assert blamed["keys_exclude_the_right_one"] > 0 and blamed["mismatches"] == 0


def test_a_wrong_query_and_a_wrong_decision_show(staged, monkeypatch):
    adapter, x, query, keys, _ = staged
    query["query"][5, 7] += 0.01
    query["norm"][6] *= 2
    told = stages.check_query(x, query)
    assert told["mismatches"] == 2 and told["query_off"] == told["error_off"] == told["norm_off"] == 1
    assert told["examples"][0]["row"] == 5 and told["examples"][0]["columns"] == [7]
    right = adapter.found(x)
    monkeypatch.setattr(adapter, "found", lambda x: (right[0].roll(1), right[1]))
    told = stages.check_decision(x, adapter, query["error"], keys)
    assert told["mismatches"] > 250 and told["to_blame"] == {"the decision": stages.SHOWN}


def test_rotated_shares_the_time_out():
    done = []
    took = measure.rotated([lambda k=k: done.append(k) or time.sleep(0.01) for k in range(4)], "cpu", 0.1)
    assert took.runs == 5 and done == [*range(4)] * 7
    assert took.ms >= 10
