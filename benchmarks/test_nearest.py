"""Times the search beside the lines that it replaces."""

from __future__ import annotations

import pytest
from baselines import BASELINES

from pez_fast.ops import IMPLEMENTATIONS


@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "naive", "cached-fp32", "cached-bf16"])
def test_nearest(name, rows, setting, usable, measure, benchmark):
    if name in IMPLEMENTATIONS:
        usable(name)
    call = setting.call(name, rows)
    wrong = setting.wrong(call(), rows)
    assert name in BASELINES or wrong == 0
    benchmark.extra_info["wrong_ids"] = wrong
    measure(f"nearest, {rows} rows", call)
