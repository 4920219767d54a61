"""How tensor cores add, simulated on the host: compared with exact integers and with the scans' bound."""

from __future__ import annotations

import sys
from fractions import Fraction
from math import frexp
from pathlib import Path

import pytest
import torch
from inputs import hurting_pair, seeded

from pez_fast import info
from pez_fast._shared.halves import scan_slack

if info("cpu")["implementations"]["cpu"] is not True:
    pytest.skip(info("cpu")["implementations"]["cpu"], allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from simulated.nearest import CARDS

from pez_fast import _C

RULES = sorted({rule for _, rule in CARDS.values()})
UNIT = 2.0**-23


def added(query: torch.Tensor, tokens: torch.Tensor, rule: tuple[int, int]) -> torch.Tensor:
    """query (width,) and tokens (128, width) float16 -> (128,) float32."""
    score, tokens = torch.empty(128), tokens.contiguous()
    _C.add_as_tensor_cores(query.data_ptr(), tokens.data_ptr(), len(query), rule, score.data_ptr())
    return score


def exponent(value: float, least: int) -> int:
    return max(frexp(value)[1] - 1, least)


def cut(value: Fraction, unit: Fraction) -> Fraction:
    """Rounds towards zero, to a multiple of the unit."""
    return Fraction(int(value / unit)) * unit


def by_fractions(query: list[float], token: list[float], rule: tuple[int, int]) -> Fraction:
    block, bits = rule
    total = Fraction(0)
    for start in range(0, len(query), block):
        pairs = [
            (q, e) for q, e in zip(query[start : start + block], token[start : start + block], strict=True) if q and e
        ]
        terms = [(Fraction(q) * Fraction(e), exponent(q, -14) + exponent(e, -14)) for q, e in pairs]
        if total:
            terms.append((total, exponent(float(total), -126)))
        if terms:
            unit = Fraction(2) ** (max(e for _, e in terms) - bits)
            total = sum(cut(value, unit) for value, _ in terms)
        if total:
            total = cut(total, Fraction(2) ** (exponent(float(total), -126) - 23))
    return total


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["normal", "positive", "one large", "mixed", "subnormal halves", "any bits"])
def test_equals_fractions(kind, rule):
    g = seeded(f"fractions {kind} {rule}")
    if kind == "any bits":  # every finite fp16 below 2, in both signs
        signs = [torch.randint(0, 2, shape, generator=g) << 15 for shape in ((64,), (128, 64))]
        rest = [torch.randint(0, 0x4000, sign.shape, generator=g) for sign in signs]
        query, tokens = (
            (r | s).to(torch.int32).to(torch.int16).view(torch.float16) for r, s in zip(rest, signs, strict=True)
        )
    else:
        x, weight = hurting_pair(kind, g, 1, 128, 64)
        query, tokens = (torch.nn.functional.normalize(t.double(), dim=-1).half() for t in (x[0], weight))
    score = added(query, tokens, rule)
    for at in range(128):
        assert float(score[at]) == float(by_fractions(query.tolist(), tokens[at].tolist(), rule)), at


def losing_pair(width: int, rule: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A query and a token, both nearly of length 1, whose product loses as much in tensor cores as the rule allows.

    The sum so far is 1, so that a block counts units of 2^-bits. Most products fall just short of one unit. A few reach
    one, and almost a second, so that their sum falls just short of the last place of float32.
    """
    block, bits = rule
    query, token = torch.zeros(width), torch.zeros(width)
    query[0] = token[0] = 1
    reaching = 2 ** (bits - 23) - 1
    for start in range(block, width, block):
        size = torch.full((block,), 1 - 2.0**-9)
        size[:reaching] = 2 - 2.0**-8
        query[start : start + block] = 2.0 ** -(bits // 2) * size
        token[start : start + block] = 2.0 ** -(bits - bits // 2)
    return query.half(), token.half()


@pytest.mark.parametrize("width", [64, 512, 1024, 4096])
@pytest.mark.parametrize("card", CARDS)
def test_the_bound_holds_where_most_is_lost(card, width):
    """The bound is tight: these rows lose more than four fifths of it."""
    capability, rule = CARDS[card]
    query, token = losing_pair(width, rule)
    exact = float(query.double() @ token.double())
    lost = exact - float(added(query, token.expand(128, -1), rule)[0])
    bound = scan_slack(width, capability, 0)
    assert 0 < lost < bound
    assert lost > 0.8 * (bound - 5 * UNIT) * (1 - rule[0] / width)  # nothing is lost in the first block


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("kind", ["normal", "positive", "one large", "mixed", "subnormal halves"])
def test_the_bound_holds(kind, card):
    capability, rule = CARDS[card]
    for width in (64, 1024):
        x, weight = hurting_pair(kind, seeded(f"bound {kind} {card}"), 4, 128, width)
        queries, tokens = (torch.nn.functional.normalize(t.double(), dim=-1).half() for t in (x, weight))
        for query in queries:
            off = (added(query, tokens, rule).double() - tokens.double() @ query.double()).abs().max()
            assert off < scan_slack(width, capability, 0)
