"""Loads in SASS: how many depend on one another, how often a thread waits for them, how wide they are; and spills."""

from __future__ import annotations

import re
from collections import Counter

from sass import LOADS, Function, Instruction

# For each register: loads in the chain behind it, the round after which it is available.
State = dict[str, tuple[int, int]]
NEVER = (0, 0)


def merged(ways: list[State]) -> State:
    return {r: tuple(map(max, zip(*(way.get(r, NEVER) for way in ways), strict=True))) for way in ways for r in way}


def step(one: Instruction, state: State, guarded: State) -> int:
    """The length of the chain that an instruction ends; 0 if it loads nothing.

    `guarded`: registers written under a guard, as seen under that guard.
    """
    writes, reads = one.moved
    load = one.base in LOADS
    seen = [guarded.get(f"{r}@{one.guard}", state.get(r, NEVER)) for r in reads]
    now = max(state.get(r, NEVER)[1] for r in ("now", *reads, *writes))
    chain = load + max((behind for behind, _ in seen), default=0)
    for name in writes:
        for key in [key for key in guarded if name in re.split("@!?", key)]:
            del guarded[key]
        new = chain, now + 1 if load else 0
        if one.guard:
            guarded[f"{name}@{one.guard}"] = new
        state[name] = (max(chain, state.get(name, NEVER)[0]), new[1]) if one.guard else new
    state["now"] = 0, now
    return load * chain


def load_chain_and_rounds(kernel: Function) -> tuple[int, int]:
    """The longest chain of loads from global memory, and the number of rounds in which a thread waits for them.

    The body of each loop counts once; of several paths the worst counts. A load waits for its guard too.
    """
    longest = 0

    def walk(entry: int, given: State) -> State:
        nonlocal longest
        ends: dict[int, State] = {}
        for n in (place := kernel.order(entry)):
            state = dict(given) if n == entry else merged([ends[b] for b in kernel.earlier(n, place)])
            guarded: State = {}
            for one in (i for i in kernel.blocks[n].instructions if not i.idle):
                if (sub := kernel.called(one)) is not None:
                    state, guarded = merged([walk(sub, state), *([state] if one.guard else [])]), {}
                else:
                    longest = max(longest, step(one, state, guarded))
            ends[n] = state
        left = [ends[n] for n in place if kernel.blocks[n].last.base in ("RET", "EXIT")]
        return merged(left or [*ends.values()])

    rounds = walk(0, {})["now"][1]
    return longest, rounds


def longest_load_chain(kernel: Function) -> int:
    """The length of the longest chain of loads in which each address or condition depends on the load before."""
    return load_chain_and_rounds(kernel)[0]


def load_rounds(kernel: Function) -> int:
    """How often a thread uses a value that it loaded since its last wait; each time costs a round trip to memory."""
    return load_chain_and_rounds(kernel)[1]


def loads_by_width(kernel: Function) -> dict[int, int]:
    """{bits: number of loads}"""
    loads = [one.modifiers for one in kernel.instructions if one.base in LOADS and not one.idle]
    widths = [[int(m.strip("US")) for m in each if re.fullmatch(r"[US]?(8|16|64|128|256)", m)] for each in loads]
    return dict(sorted(Counter(width[-1] if width else 32 for width in widths).items()))


def spills(kernel: Function) -> int:
    return sum(i.base in ("STL", "LDL") and not i.idle for i in kernel.instructions)
