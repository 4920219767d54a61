"""Times splice, which puts prompts into templates, forward and backward, beside torch's lines."""

from __future__ import annotations

from functools import partial

import pytest
from splice import LINES, SHAPES, arguments, both, check, forward, torch_lines

from pez_fast import splice
from pez_fast.ops import IMPLEMENTATIONS


@pytest.mark.parametrize("what", ["forward", "forward and backward"])
@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, LINES])
def test_splice(name, what, device, big, usable, measure):
    if name != LINES:
        usable(name)
    way = torch_lines if name == LINES else partial(splice, impl=name)
    given = arguments(SHAPES["short, many" if big else "a batch"], device)
    check(way, given, name)
    run = forward if what == "forward" else both
    measure(f"splice, {what}", lambda: run(way, given))
