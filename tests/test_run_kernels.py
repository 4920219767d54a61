"""The command that runs the project's own kernels on the PTX machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import run_kernels
import torch
from ptx.report import WrongResult
from recorded_cuda import missing

ROOT = Path(__file__).parents[1]
needs_build = pytest.mark.skipif(bool(missing()), reason=f"the launchers cannot be built: {missing()}")


@needs_build
def test_the_projects_kernels(capsys, tmp_path):
    found = tmp_path / "found.json"
    assert run_kernels.main(f"cuda --kernel splice --n 3 --d 8 --seeds 2 --record {found}".split()) == 0
    printed = capsys.readouterr().out
    assert "pez::cuda::splice_kernel<float>" in printed and "2 seeds: no fault" in printed
    assert "out equal to the reference's" in printed and '"equal": true' in found.read_text()
    assert run_kernels.main("cuda --kernel splice-backward --n 3 --d 8 --seeds 2 --dtype float16".split()) == 0
    assert "total equal to the reference's" in capsys.readouterr().out


@needs_build
def test_a_search_up_to_a_kernel(capsys):
    assert run_kernels.main("cuda --n 40 --tokens 40 --d 16 --kernel query --seeds 2".split()) == 0
    printed = capsys.readouterr().out
    assert "nearest_query_kernel" in printed and "scan" not in printed
    assert "the last kernel did not run" in printed


@needs_build
def test_a_planted_fault_in_the_projects_kernels(capsys, monkeypatch):
    def planted(*given):
        return case(*given).edited(lambda text: text.replace("bar.sync", "// "))

    case = run_kernels.cuda_splice
    monkeypatch.setattr(run_kernels, "cuda_splice", planted)
    assert run_kernels.main("cuda --kernel splice --n 3 --d 8 --seeds 4".split()) == 1
    printed = capsys.readouterr().out
    assert "fault 1: " in printed and "splice.cu:" in printed and "equal to" not in printed
    monkeypatch.setattr(run_kernels, "cuda_splice", lambda *given: replace(case(*given), launches=[]))
    assert run_kernels.main("cuda --kernel splice --n 3 --d 8 --seeds 1".split()) == 1
    assert "WrongResult with seed 0" in capsys.readouterr().out


def test_wrong_ids():
    run_kernels.compare(torch.tensor([1, 2]), torch.tensor([1, 2]), "found")
    with pytest.raises(WrongResult, match="1 of 2 rows of found are wrong: row 1 is 3 and should be 2"):
        run_kernels.compare(torch.tensor([1, 3]), torch.tensor([1, 2]), "found")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rust", "implementation: invalid choice: 'rust'"),
        ("cuda --n 0", "--n: '0' is no whole number from 1 on"),
        ("cuda --card 7.0", "--card: invalid choice: '7.0'"),
        ("cuda --csrc /nowhere", "--csrc: '/nowhere' is no folder"),
        (f"triton --csrc {ROOT / 'csrc'}", "but triton has no kernels there"),
    ],
)
def test_bad_usage_of_run_kernels(capsys, options, said):
    assert run_kernels.main(options.split()) == 2
    assert said in capsys.readouterr().err


@needs_build
def test_a_kernel_that_does_not_run(capsys):
    assert run_kernels.main("cuda --n 3 --tokens 9 --d 8 --kernel scan_sm80".split()) == 2
    assert "--kernel is scan_sm80, but what runs here is pez::cuda::nearest_query_kernel" in capsys.readouterr().err


def test_the_data():
    options = run_kernels.command_line().parse_args("cuda --n 6 --tokens 30 --d 5 --data ties".split())
    x, weight, banned = run_kernels.searched(options)
    units = weight.double() / weight.double().norm(dim=1, keepdim=True)
    assert x.shape == (6, 5) and not banned and len(torch.unique(units.round(decimals=9), dim=0)) < 10
    options.data = "twins"
    x, weight, banned = run_kernels.searched(options)
    assert torch.equal(weight[0], weight[10]) and torch.equal(2 * weight[0], weight[20]) and banned == [0, 2, 4, 6, 8]
