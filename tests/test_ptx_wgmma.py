"""wgmma: products of a warp group that run beside it, and the rules about when who may touch what."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import BarrierError, Deadlock, Divergence, InFlightError, MachineError, PoisonError, RaceError
from ptx_text import HERE, SCHEDULES, Fresh, Shape, always, execute, fails, kernel

GROUP = Shape(block=128)
K = 32  # two instructions
FENCE = "    wgmma.fence.sync.aligned;\n"
COMMIT = "    wgmma.commit_group.sync.aligned;\n"
WAIT = "    wgmma.wait_group.sync.aligned 0;\n"
PROXY = "    fence.proxy.async.shared::cta;\n    bar.sync 0;\n"
RANDOM = np.random.default_rng(3)


def core_matrices(matrix: np.ndarray) -> np.ndarray:
    """K-major without a swizzle: core matrices of 8 rows by 16 bytes, those along K behind each other."""
    rows, k = matrix.shape
    return np.ascontiguousarray(matrix.reshape(rows // 8, 8, k // 8, 8).transpose(0, 2, 1, 3)).astype(np.float16)


def layout(n: int) -> str:
    return f".shared .align 128 .b8 sa[{64 * K * 2}];\n.shared .align 128 .b8 sb[{n * K * 2}];"


def copying(name: str, to: str, size: int) -> str:
    """All threads copy an array of `size` bytes to shared memory, by ordinary stores."""
    return f"""
    {{ .reg .b32 %at, %to; .reg .b64 %from, %wide; .reg .pred %more;
    shl.b32 %at, %tid, 3;
    COPYING:
    cvt.u64.u32 %wide, %at;
    add.s64 %from, %{name}, %wide;
    ld.global.u64 %wide, [%from];
    mov.u32 %to, {to};
    add.u32 %to, %to, %at;
    st.shared.u64 [%to], %wide;
    add.u32 %at, %at, 1024;
    setp.lt.u32 %more, %at, {size};
    @%more bra COPYING; }}
"""


def descriptor(register: str, name: str, step: int = 0) -> str:
    """LBO 128 bytes between core matrices along K, SBO between those along M or N."""
    high = (128 >> 4) << 16 | (K * 16 >> 4) << 32
    return f"""
    mov.u32 %r1, {name};
    add.u32 %r1, %r1, {step * 256};
    shr.u32 %r1, %r1, 4;
    cvt.u64.u32 {register}, %r1;
    or.b64 {register}, {register}, {high:#x};
"""


def accumulators(n: int, first: int = 0) -> str:
    return ", ".join(f"%f{first + i}" for i in range(n // 2))


def product(n: int, a: str, b: str, add: str, first: int = 0, signs: str = "1, 1", mark: str = "") -> str:
    tail = ", 0" if a.startswith("{") else ", 0, 0"
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.f16.f16"
    return f"    {opcode} {{{accumulators(n, first)}}}, {a}, {b}, {add}, {signs}{tail}; {mark}\n"


def storing(n: int, first: int = 0) -> str:
    """out[thread][register]"""
    lines = [f"    mad.lo.u32 %r2, %tid, {n * 2}, 0;\n    cvt.u64.u32 %d9, %r2;\n    add.s64 %d9, %out, %d9;\n"]
    return "".join([*lines, *(f"    st.global.f32 [%d9+{4 * i}], %f{first + i}; {HERE}\n" for i in range(n // 2))])


def started(n: int) -> str:
    return (
        copying("a", "sa", 64 * K * 2)
        + copying("b", "sb", n * K * 2)
        + "PROXY"
        + "".join(descriptor(f"%d{1 + i}", "sa", i) + descriptor(f"%d{3 + i}", "sb", i) for i in range(2))
        + "    setp.ne.u32 %p1, %tid, %tid;\n    setp.eq.u32 %p2, %tid, %tid;\n"
    )


def text(n: int, body: str, proxy: str = PROXY) -> str:
    whole = started(n).replace("PROXY", proxy) + body
    return kernel(whole, shared=layout(n), out="u64", a="u64", b="u64")


def operands(n: int) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.integers(-9, 10, (64, K)), RANDOM.integers(-9, 10, (n, K))


def fragments(d: np.ndarray) -> np.ndarray:
    """(64, n) -> (128, n / 2), by the manual: which element each register of a thread holds."""
    n = d.shape[1]
    thread, i = np.arange(128)[:, None], np.arange(n // 2)[None]
    lane = thread % 32
    return d[16 * (thread // 32) + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2]


def both(n: int) -> str:
    return product(n, "%d1", "%d3", "%p1") + product(n, "%d2", "%d4", "%p2")


def given(n: int, a: np.ndarray, b: np.ndarray) -> list:
    return [Fresh((128, n // 2), np.float32), core_matrices(a), core_matrices(b)]


@pytest.mark.parametrize("n", [16, 64, 128, 256])
def test_products_of_small_integers(n: int) -> None:
    a, b = operands(n)
    whole = text(n, FENCE + both(n) + COMMIT + WAIT + storing(n))
    expected = fragments((a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.float32))
    for seed, style in SCHEDULES if n == 16 else SCHEDULES[::6]:
        found = execute(whole, given(n, a, b), GROUP, seed, style)[0]
        np.testing.assert_array_equal(found, expected)


def test_the_sum_so_far_and_signs() -> None:
    a, b = operands(16)
    start = "".join(f"    mov.f32 %f{i}, 0f42C80000;\n" for i in range(8))  # 100
    negated = product(16, "%d1", "%d3", "%p2", signs="-1, 1") + product(16, "%d2", "%d4", "%p2", signs="-1, -1")
    whole = text(16, start + FENCE + negated + COMMIT + WAIT + storing(16))
    expected = 100 - a[:, :16] @ b[:, :16].T + a[:, 16:] @ b[:, 16:].T
    always(whole, given(16, a, b), fragments(expected.astype(np.float32)), GROUP)


def test_matrix_a_from_registers() -> None:
    """Each thread loads its fragment: four registers of two elements, as of mma."""
    a, b = operands(16)
    fragment = np.zeros((128, 8), np.float16)
    for thread in range(128):
        for i in range(8):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (i // 2 % 2)
            fragment[thread, i] = a[row, thread % 4 * 2 + i % 2 + 8 * (i // 4)]
    loads = "    mul.wide.u32 %d8, %tid, 16;\n    add.s64 %d8, %fragment, %d8;\n"
    loads += "    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d8];\n"
    one = product(16, "{%r10, %r11, %r12, %r13}", "%d3", "%p1", mark=HERE)
    kinds = {"out": "u64", "a": "u64", "b": "u64", "fragment": "u64"}
    body = started(16).replace("PROXY", PROXY) + loads

    def whole(rest: str) -> str:
        return kernel(body + rest, shared=layout(16), **kinds)

    expected = fragments((a[:, :16] @ b[:, :16].T).astype(np.float32))
    arguments = [*given(16, a, b), fragment]
    always(whole(FENCE + one + COMMIT + WAIT + storing(16)), arguments, expected, GROUP)
    changed = whole(FENCE + one.replace(HERE, "") + COMMIT + "    mov.u32 %r12, 0;\n" + WAIT.rstrip() + f" {HERE}\n")
    fails(InFlightError, changed, arguments, GROUP, "as its matrix A")
    late = FENCE + "    add.u32 %r12, %r12, 0;\n" + one.replace(HERE, "") + COMMIT + WAIT
    fails(InFlightError, whole(late), arguments, GROUP, "no wgmma.fence")


def test_two_groups_in_flight() -> None:
    """The first group's accumulators may be read after wait_group 1, those of the second only after wait_group 0."""
    a, b = operands(16)
    groups = FENCE + product(16, "%d1", "%d3", "%p1") + COMMIT + product(16, "%d2", "%d4", "%p1", first=8) + COMMIT
    one = "    wgmma.wait_group.sync.aligned 1;\n"
    sums = "".join(f"    add.f32 %f{i}, %f{i}, %f{8 + i}; {HERE}\n" for i in range(8))
    keep = "".join(f"    mov.f32 %f{20 + i}, %f{i};\n" for i in range(8))
    expected = fragments((a[:, :16] @ b[:, :16].T).astype(np.float32))
    always(text(16, groups + one + keep + WAIT + storing(16, 20)), given(16, a, b), expected, GROUP)
    always(
        text(16, groups + WAIT + sums + storing(16)), given(16, a, b), fragments((a @ b.T).astype(np.float32)), GROUP
    )
    fails(InFlightError, text(16, groups + one + sums + WAIT), given(16, a, b), GROUP, "still writes")


RULES = {
    "no fence": (both(16) + COMMIT + WAIT, InFlightError, "no wgmma.fence"),
    "a register is written behind the fence": (
        FENCE + "    mov.f32 %f3, 0f00000000;\n" + product(16, "%d1", "%d3", "%p2") + COMMIT + WAIT,
        (InFlightError, PoisonError),
        "",
    ),
    "no commit": (FENCE + both(16) + WAIT + storing(16), InFlightError, ""),
    "no wait": (FENCE + both(16) + COMMIT + storing(16), InFlightError, ""),
    "the end comes first": (FENCE + both(16) + COMMIT, InFlightError, "the warp ends while its wgmma"),
    "a sum from nothing": (FENCE + product(16, "%d1", "%d3", "%p2") + COMMIT + WAIT, PoisonError, ""),
    "an accumulator is written": (
        FENCE + both(16) + COMMIT + "    mov.f32 %f3, 0f00000000;\n" + WAIT, InFlightError, "",
    ),
    "another shape writes the same": (
        FENCE + both(16) + product(8, "%d1", "%d3", "%p1") + COMMIT + WAIT, InFlightError, "another shape",
    ),
    "an operand is overwritten": (
        FENCE + both(16) + COMMIT + "    st.shared.u32 [sa+48], %tid;\n".replace("%tid", "7") + WAIT,
        (InFlightError, RaceError),
        "",
    ),
    "the descriptor reaches too far": (
        "    add.s64 %d3, %d3, 1000;\n" + FENCE + both(16) + COMMIT + WAIT, MachineError, "outside of|never",
    ),
    "lanes differ": (
        "    cvt.u64.u32 %d8, %lane;\n    add.s64 %d3, %d3, %d8;\n" + FENCE + both(16) + COMMIT + WAIT,
        BarrierError,
        "lanes differ",
    ),
    "half a warp": (
        "    setp.lt.u32 %p5, %lane, 16;\n    @%p5 wgmma.fence.sync.aligned;\n", Divergence, "",
    ),
    "three warps": (
        "    setp.eq.u32 %p5, %warp, 3;\n    @%p5 bra OVER;\n" + FENCE + both(16) + COMMIT + WAIT + "OVER:\n",
        (BarrierError, Deadlock),
        "warp group",
    ),
    "warps that multiply different things": (
        "    setp.eq.u32 %p5, %warp, 3;\n    @%p5 mov.b64 %d1, %d2;\n" + FENCE + both(16) + COMMIT + WAIT,
        BarrierError,
        "different things",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_against_the_rules(name: str) -> None:
    body, kind, says = RULES[name]
    whole = text(16, body.replace(HERE, ""))
    for seed, style in SCHEDULES[::2]:
        with pytest.raises(kind, match=says or None) as caught:
            execute(whole, given(16, *operands(16)), GROUP, seed, style)
        assert "line" in str(caught.value)


def test_ordinary_stores_need_a_fence_of_the_proxies_and_a_barrier() -> None:
    body = FENCE + both(16) + COMMIT + WAIT
    without = text(16, body, "    bar.sync 0;\n")
    fails(InFlightError, without, given(16, *operands(16)), GROUP, "no fence.proxy.async followed")
    unordered = text(16, body, "    fence.proxy.async.shared::cta;\n")
    fails((InFlightError, RaceError), unordered, given(16, *operands(16)), GROUP)


def test_operands_may_be_overwritten_after_the_wait() -> None:
    """A product is one of its warp group, so that a warp that has waited knows that all four warps' rows are done."""
    a, b = operands(16)
    again = "    st.shared.u32 [sb+12], 5;\n"
    expected = fragments((a @ b.T).astype(np.float32))
    always(text(16, FENCE + both(16) + COMMIT + WAIT + again + storing(16)), given(16, a, b), expected, GROUP)
    before = text(16, FENCE + both(16) + COMMIT + again + HERE + WAIT + storing(16))
    fails((InFlightError, RaceError), before.replace(HERE, ""), given(16, a, b), GROUP)
